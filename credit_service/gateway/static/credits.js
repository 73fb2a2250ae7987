/**
 * Credits on a page: custom elements over one live store. No build step, no dependency.
 *
 *   <script type="module" src="/credits/credits.js"></script>
 *   <credits-balance></credits-balance>
 *
 * The elements show only what the server said, in the order of (updated_at, seq), and never compute
 * a balance of their own. An unknown balance is a dash, never 0.
 */

/* ------------------------------------------------------------------ texts */

/** Every sentence shown, by name. Objects are chosen by the plural category of `n`. */
export const texts = {
  balance: "Credits",
  unknown: "Balance not known yet",
  held: { one: "{n} held for running jobs", other: "{n} held for running jobs" },
  expiring: { one: "{n} expires on {date}", other: "{n} expire on {date}" },
  owed: { one: "{n} credit owed", other: "{n} credits owed" },
  low: { one: "Only {n} credit is left.", other: "Only {n} credits are left." },
  empty: "No credits are left.",
  frozen: "This account is frozen. Please contact support.",
  asOf: "as of {time}",
  now: { one: "{n} credit available", other: "{n} credits available" },
  signedOut: "Sign in to see your credits.",
  away: "Not available right now.",
  retry: "Try again",
  total: "Total",
  cost: { one: "{n} credit", other: "{n} credits" },
  perUnit: "{n} per {unit}",
  short: { one: "{n} credit short", other: "{n} credits short" },
  affordable: "You have enough credits.",
  buy: "Buy",
  buying: "Opening checkout…",
  buyPack: "Buy {name} for {price}",
  validFor: "valid for {duration}",
  noPacks: "Nothing is on sale at the moment.",
  checkoutFailed: "The checkout could not be opened. You have not been charged.",
  checkoutHost: "The checkout address is not one this page may open.",
  needed: { one: "You need {n} more credit.", other: "You need {n} more credits." },
  neededDetail: "This costs {required}; you have {available}.",
  history: "History",
  what: "Description",
  change: "Change",
  after: "Balance",
  more: "Show more",
  none: "Nothing yet.",
  usage: "Credits used by day",
  usageNone: "No credits were used in this period.",
  day: "Day",
  returnCredited: { one: "Paid. {n} credit was added.", other: "Paid. {n} credits were added." },
  returnCreditedSome: "Paid. Your credits were added.",
  returnProcessing:
    "Your bank is still processing the payment. The credits arrive when it is confirmed.",
  returnOpen: "This payment has not been completed.",
  returnExpired: "This checkout has expired. You have not been charged.",
  returnChecking: "Checking your payment…",
  returnAway: "We cannot check your payment at the moment. Nothing is lost; we keep trying.",
  returnUnknown: "This payment is not known here.",
  types: {
    purchase: "Purchase",
    spend: "Used",
    refund: "Refund",
    hold: "Held",
    capture: "Used",
    release: "Released",
    expire: "Released",
    grant: "Credited",
    reversal: "Payment returned",
    lapse: "Expired",
    adjustment: "Correction",
    revocation: "Withdrawn",
  },
  operations: {},
};

function phrase(own, name, locale, facts = {}) {
  let text = own[name] ?? texts[name];
  if (typeof text === "object") {
    const category = new Intl.PluralRules(locale).select(Number(facts.n));
    text = text[category] ?? text.other;
  }
  return text.replace(/\{(\w+)\}/g, (_, key) => {
    const value = facts[key];
    return typeof value === "number" ? new Intl.NumberFormat(locale).format(value) : `${value}`;
  });
}

/* ------------------------------------------------------------------ money */

// Stripe counts these in other minor units than ISO 4217 says
// (docs.stripe.com/currencies, "Zero-decimal currencies" and "Special cases").
const MINOR_DIGITS = { ISK: 2, UGX: 2, MGA: 0 };

/** Writes an amount in minor units, 900 of "eur" as €9.00, in the locale's own way. */
export function money(amountMinor, currency, locale) {
  const code = currency.toUpperCase();
  const format = new Intl.NumberFormat(locale, { style: "currency", currency: code });
  const digits = MINOR_DIGITS[code] ?? format.resolvedOptions().maximumFractionDigits;
  return format.format(amountMinor / 10 ** digits);
}

const DURATIONS = [["year", 365 * 86400], ["day", 86400], ["hour", 3600], ["minute", 60]];

/** Writes a length of time in whole years of 365 days, or else in days, hours or minutes. */
export function duration(seconds, locale) {
  const [unit, length] = DURATIONS.find(([, each]) => seconds % each === 0) ?? ["second", 1];
  return new Intl.NumberFormat(locale, { style: "unit", unit, unitDisplay: "long" }).format(seconds / length);
}

/* --------------------------------------------------------------- problems */

/** A refused or failed request; `reason` and the figures are those of the problem document. */
export class CreditsProblem extends Error {
  constructor(status, body = {}, retryAfterSeconds = null) {
    super(body.detail ?? body.title ?? `HTTP ${status}`);
    this.name = "CreditsProblem";
    Object.assign(this, body);
    this.status = status;
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

async function problemOf(response) {
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  try {
    return new CreditsProblem(response.status, await response.json(), retryAfter);
  } catch {
    return new CreditsProblem(response.status, {}, retryAfter);
  }
}

/* ------------------------------------------------------------------ store */

const HERE = new URL(".", import.meta.url).href;
const BACKOFF_MS = [250, 500, 1000, 2000, 4000, 8000, 15000, 30000];
// Three heartbeats missed: the connection is dead, even without an error.
const SILENCE_MS = 45_000;
const PUBLIC = /^config$/;
const LOOPBACK = /^(localhost|127(\.\d+){3}|\[::1\])$/;

const NOTHING = Object.freeze({ status: "loading", account: null, asOf: null, refusal: null });

/**
 * One user's credits, live, and the calls of the gateway.
 *
 * `snapshot` is {status, account, asOf, refusal}: status is "loading", "live", "away" or
 * "signed-out"; account is null while unknown; asOf is the Date of a state that may be old. It is
 * immutable and a new object after each change, as React's useSyncExternalStore wants it.
 */
export class CreditsStore extends EventTarget {
  #base;
  #token = null;
  #origins = [];
  #snapshot = NOTHING;
  #users = 0;
  #run = null;
  #wake = () => {};
  #lastSeen = null;
  #buying = false;
  #kept = new Map();

  constructor({ base = HERE, token = null, origins = [], credentials = "same-origin" } = {}) {
    super();
    this.#base = new URL(base.endsWith("/") ? base : `${base}/`, globalThis.document?.baseURI ?? HERE);
    this.#token = token;
    this.#origins = origins;
    this.credentials = credentials;
  }

  get snapshot() {
    return this.#snapshot;
  }

  get base() {
    return this.#base.href;
  }

  /** An async function that gives a bearer token; called with {fresh: true} after a 401. */
  set token(token) {
    this.#token = token;
    this.reset();
  }

  /** Origins beside the module's own that may be sent the token. */
  set origins(origins) {
    this.#origins = origins;
  }

  /** Forgets the user (after a sign-out, or a sign-in as another user) and begins again. */
  reset() {
    this.#kept.clear();
    this.#lastSeen = null;
    this.#set(NOTHING);
    this.dispatchEvent(new Event("reset"));
    if (this.#run) {
      this.#stop();
      this.#start();
    }
  }

  /** Calls `listener` after each change; the stream runs while there is a subscriber. */
  subscribe(listener) {
    this.addEventListener("change", listener);
    if (this.#users++ === 0) {
      this.#start();
    }
    return () => {
      this.removeEventListener("change", listener);
      if (--this.#users === 0) {
        this.#stop();
      }
    };
  }

  /** Notes a refusal that the app received: shows the shortfall until the balance covers it. */
  refuse(problem) {
    this.#set({ ...this.#snapshot, refusal: problem });
  }

  clearRefusal() {
    if (this.#snapshot.refusal) {
      this.#set({ ...this.#snapshot, refusal: null });
    }
  }

  prices() {
    return this.#once("prices", "prices");
  }

  packs() {
    return this.#once("packs", "packs");
  }

  config() {
    return this.#once("config", "config");
  }

  quote(items) {
    return this.request("quotes", { body: { items } });
  }

  transactions({ cursor, limit, types = [] } = {}) {
    const query = new URLSearchParams(types.map((type) => ["type", type]));
    if (limit) query.set("limit", limit);
    if (cursor) query.set("cursor", cursor);
    return this.request(`transactions?${query}`);
  }

  holds({ cursor, limit } = {}) {
    const query = new URLSearchParams();
    if (limit) query.set("limit", limit);
    if (cursor) query.set("cursor", cursor);
    return this.request(`holds?${query}`);
  }

  usage({ from, to } = {}) {
    const query = new URLSearchParams();
    if (from) query.set("from", from);
    if (to) query.set("to", to);
    return this.request(`usage?${query}`);
  }

  checkout(id) {
    return this.request(`checkouts/${encodeURIComponent(id)}`);
  }

  refreshCheckout(id) {
    return this.request(`checkouts/${encodeURIComponent(id)}/refresh`, { body: {} });
  }

  async portal() {
    const { url } = await this.request("portal", { body: {} });
    this.#follow(url, (await this.config()).portal_hosts);
  }

  /**
   * Opens the checkout of a pack and leaves the page. A second call while one is under way does
   * nothing, so a double click buys once. With `saveCard` the card is kept for later payments.
   */
  async buy(pack, { saveCard = false } = {}) {
    if (this.#buying) {
      return;
    }
    this.#setBuying(true);
    try {
      saveCard = Boolean(saveCard);
      const body = saveCard ? { pack, save_card: true } : { pack };
      const intent = intentFor(this.#base.href, pack, saveCard);
      const [order, config] = await Promise.all([
        this.request("checkouts", { body, key: intent.key }),
        this.config(),
      ]);
      keepIntent(this.#base.href, { ...intent, id: order.id });
      this.#follow(order.url, config.checkout_hosts);
    } catch (error) {
      this.#setBuying(false);
      if (error instanceof CreditsProblem && error.status < 500 && error.status !== 429) {
        dropIntent(this.#base.href);
      }
      throw error;
    }
  }

  get buying() {
    return this.#buying;
  }

  /** Makes the buttons usable again, with a new intent: the user came back from the checkout. */
  stopBuying() {
    dropIntent(this.#base.href);
    this.#setBuying(false);
  }

  /** Sends one request; returns the JSON of the answer or throws a CreditsProblem. */
  async request(path, { body, key, signal } = {}) {
    const response = await this.#fetch(path, { body, key, signal });
    if (!response.ok) {
      const problem = await problemOf(response);
      if (problem.status === 401) {
        this.#signedOut();
      }
      throw problem;
    }
    return response.json();
  }

  async #fetch(path, { body, key, signal, fresh = false, accept = "application/json" } = {}) {
    const send = async (renewed) => {
      const headers = { Accept: accept };
      const token = await this.#bearer(renewed);
      if (token) headers.Authorization = `Bearer ${token}`;
      // The page has no token to give, so no user is signed in; no request is needed to find out.
      else if (this.#token && !PUBLIC.test(path)) return new Response(null, { status: 401 });
      if (key) headers["Idempotency-Key"] = key;
      if (body !== undefined) headers["Content-Type"] = "application/json";
      return fetch(new URL(path, this.#base), {
        method: body === undefined ? "GET" : "POST",
        headers,
        body: body === undefined ? undefined : JSON.stringify(body),
        credentials: this.credentials,
        cache: accept === "application/json" && PUBLIC.test(path) ? "default" : "no-store",
        signal,
      });
    };
    const response = await send(fresh);
    return response.status === 401 && this.#token && !fresh ? send(true) : response;
  }

  async #bearer(fresh) {
    if (!this.#token) {
      return null;
    }
    const { origin } = this.#base;
    if (origin !== new URL(HERE).origin && !this.#origins.includes(origin)) {
      throw new Error(`credits: ${origin} may not be sent the token; add it to "origins"`);
    }
    return this.#token({ fresh });
  }

  async #once(name, path) {
    if (!this.#kept.has(name)) {
      const asked = this.request(path);
      this.#kept.set(name, asked);
      asked.catch(() => this.#kept.delete(name));
    }
    return this.#kept.get(name);
  }

  #set(snapshot) {
    this.#snapshot = Object.freeze(snapshot);
    this.dispatchEvent(new Event("change"));
  }

  #setBuying(buying) {
    if (this.#buying !== buying) {
      this.#buying = buying;
      this.dispatchEvent(new Event("buying"));
    }
  }

  #follow(address, hosts) {
    const url = new URL(address);
    const secure = url.protocol === "https:" || (url.protocol === "http:" && LOOPBACK.test(url.hostname));
    if (!secure || !hosts.includes(url.host)) {
      throw new CreditsProblem(0, { reason: "CHECKOUT_HOST", detail: texts.checkoutHost });
    }
    globalThis.location.assign(url.href);
  }

  #signedOut() {
    if (this.#snapshot.status !== "signed-out") {
      this.#kept.clear();
      this.#set({ ...NOTHING, status: "signed-out" });
      this.dispatchEvent(new Event("signed-out"));
    }
  }

  /* -- the stream: one per browser and origin where Web Locks exist, else one per visible tab -- */

  #start() {
    const run = new AbortController();
    this.#run = run;
    const wake = () => {
      if (!document.hidden) this.#wake();
    };
    const options = { signal: run.signal };
    globalThis.addEventListener?.("online", wake, options);
    globalThis.addEventListener?.("pageshow", wake, options);
    globalThis.document?.addEventListener("visibilitychange", wake, options);
    this.#live(run.signal).catch((error) => {
      if (!run.signal.aborted) throw error;
    });
  }

  #stop() {
    this.#run?.abort();
    this.#run = null;
  }

  async #live(stopped) {
    // The page's own scripts set the token; they have all run by then.
    await pageIsReady();
    while (!stopped.aborted) {
      const name = await this.#channelName();
      if (stopped.aborted) return;
      if (!globalThis.navigator?.locks || !globalThis.BroadcastChannel) {
        await this.#lead(stopped, null);
        return;
      }
      await this.#share(stopped, name);
    }
  }

  /** Leads or follows until the page stops, or until another page of this user takes the lead. */
  async #share(stopped, name) {
    const over = new AbortController();
    const ended = AbortSignal.any([stopped, over.signal]);
    const channel = new BroadcastChannel(name);
    const lead = () => {
      silent.stop();
      return this.#lead(ended, channel);
    };
    // A leading page that the system has put to sleep keeps its lock and says nothing.
    const silent = watchdog(SILENCE_MS, () => {
      if (!document.hidden) hold({ steal: true });
    });
    const failed = (error) => {
      // AbortError: the page stopped, or another one has taken the lock.
      if (error.name !== "AbortError") throw error;
    };
    const hold = (options) =>
      navigator.locks
        .request(name, options, lead)
        .catch(failed)
        .finally(() => over.abort());
    try {
      this.#listen(channel, ended, silent);
      hold({ signal: ended });
      await new Promise((resolve) => ended.addEventListener("abort", resolve, { once: true }));
    } finally {
      silent.stop();
      channel.close();
    }
  }

  async #channelName() {
    let user = "";
    try {
      const token = await this.#bearer(false);
      if (token) user = await fingerprint(token);
    } catch {
      // Without a token there is no tab to share with; the stream asks again and says why.
      user = crypto.randomUUID();
    }
    return `credits:${this.#base.href}:${user}`;
  }

  /** Applies what the leading tab receives, and asks it for what it knows. */
  #listen(channel, stopped, silent) {
    channel.addEventListener(
      "message",
      ({ data }) => {
        if (data.ask) return;
        silent.heard();
        if (data.beat) return;
        if (data.signedOut) this.#signedOut();
        else this.#take(data.event, data.data, data.whole);
      },
      { signal: stopped },
    );
    channel.postMessage({ ask: true });
  }

  async #lead(stopped, channel) {
    const post = (message) => channel?.postMessage(message);
    channel?.addEventListener(
      "message",
      ({ data }) => {
        if (data.ask && this.#snapshot.account) {
          post({ event: "account", data: this.#snapshot.account, whole: true });
          if (this.#snapshot.status === "away") post({ event: "link", data: { up: false, as_of: this.#lastSeen } });
        }
      },
      { signal: stopped },
    );
    let failures = 0;
    let fresh = false;
    while (!stopped.aborted) {
      let heard = false;
      let pause = null;
      try {
        const outcome = await this.#stream(
          stopped,
          fresh,
          (event, data, whole) => {
            heard = true;
            this.#take(event, data, whole);
            post({ event, data, whole });
          },
          () => post({ beat: true }),
        );
        fresh = outcome === "token_expiring";
        if (outcome === "signed-out") {
          post({ signedOut: true });
          await this.#woken(stopped, 5 * 60_000);
          continue;
        }
        if (outcome === "replaced") {
          // Six newer streams of this user run elsewhere: wait until this page is looked at.
          await this.#woken(stopped, 60_000);
        }
      } catch (error) {
        if (stopped.aborted) return;
        pause = error.retryAfterSeconds ? error.retryAfterSeconds * 1000 : null;
      }
      if (stopped.aborted) return;
      if (heard) {
        failures = 0;
      } else {
        this.#away();
        post({ event: "link", data: { up: false, as_of: this.#lastSeen } });
      }
      const base = pause ?? BACKOFF_MS[Math.min(failures, BACKOFF_MS.length - 1)];
      failures += 1;
      await this.#woken(stopped, base * (0.75 + Math.random() / 2));
    }
  }

  /** Waits, but not past the moment when the page is seen again or the network is back. */
  async #woken(stopped, ms) {
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
      stopped.addEventListener("abort", this.#wake, { once: true });
    });
    this.#wake = () => {};
  }

  async #stream(stopped, fresh, take, beat) {
    const cut = new AbortController();
    const abort = () => cut.abort();
    stopped.addEventListener("abort", abort, { once: true });
    const silent = watchdog(SILENCE_MS, abort);
    const hide = () => {
      if (document.hidden && !globalThis.navigator?.locks) abort();
    };
    globalThis.document?.addEventListener("visibilitychange", hide, { signal: cut.signal });
    // Noticed at once instead of after three heartbeats.
    globalThis.addEventListener?.("offline", abort, { signal: cut.signal });
    try {
      const response = await this.#fetch("account/stream", {
        accept: "text/event-stream",
        fresh,
        signal: cut.signal,
      });
      if (response.status === 401) {
        this.#signedOut();
        return "signed-out";
      }
      if (!response.ok) {
        throw await problemOf(response);
      }
      let whole = true;
      const heard = () => {
        silent.heard();
        beat();
      };
      for await (const { event, data } of events(response.body, heard)) {
        if (event === "end") {
          return data.reason;
        }
        take(event, data, whole);
        if (event === "account") whole = false;
      }
      return "cut";
    } finally {
      silent.stop();
      stopped.removeEventListener("abort", abort);
      cut.abort();
    }
  }

  #take(event, data, whole) {
    if (event === "account") {
      const known = this.#snapshot.account;
      if (known && !whole && !isNewer(data, known)) {
        return;
      }
      this.#lastSeen = new Date().toISOString();
      const { refusal, status } = this.#snapshot;
      const covered = refusal && (data.spendable ?? 0) >= (refusal.required ?? Infinity);
      this.#set({
        status: "live",
        account: Object.freeze({ ...data }),
        asOf: null,
        refusal: covered ? null : refusal,
      });
      if (status === "signed-out") this.dispatchEvent(new Event("reset"));
    } else if (event === "link") {
      if (data.up) {
        if (this.#snapshot.account) this.#set({ ...this.#snapshot, status: "live", asOf: null });
      } else {
        this.#away(data.as_of);
      }
    }
  }

  #away(asOf = this.#lastSeen) {
    if (this.#snapshot.status === "signed-out") return;
    const time = asOf ? new Date(asOf) : null;
    const { status, asOf: shown } = this.#snapshot;
    if (status !== "away" || shown?.getTime() !== time?.getTime()) {
      this.#set({ ...this.#snapshot, status: "away", asOf: time });
    }
  }
}

function pageIsReady() {
  return new Promise((resolve) => {
    if (document.readyState === "complete") {
      setTimeout(resolve);
    } else {
      document.addEventListener("DOMContentLoaded", resolve, { once: true });
      globalThis.addEventListener("load", resolve, { once: true });
    }
  });
}

/** Calls `bark` when nothing was heard for `ms` milliseconds. */
function watchdog(ms, bark) {
  let timer = setTimeout(bark, ms);
  let stopped = false;
  return {
    heard() {
      clearTimeout(timer);
      if (!stopped) timer = setTimeout(bark, ms);
    },
    stop() {
      stopped = true;
      clearTimeout(timer);
    },
  };
}

function isNewer(account, known) {
  const [at, before] = [account.updated_at ?? "", known.updated_at ?? ""];
  return at > before || (at === before && account.seq >= known.seq);
}

/** Reads Server-Sent Events (WHATWG HTML, "Interpreting an event stream") off a response body. */
async function* events(body, heard) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = "";
  let data = [];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    heard();
    const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (data.length) yield { event: event || "message", data: JSON.parse(data.join("\n")) };
        event = "";
        data = [];
      } else if (line.startsWith("event:")) {
        event = line.slice(6).trim();
      } else if (line.startsWith("data:")) {
        data.push(line.slice(5).replace(/^ /, ""));
      }
    }
  }
}

/** Names the user of a token without keeping it: tabs of one user share a stream, others do not. */
async function fingerprint(token) {
  let user = token;
  try {
    const part = token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/");
    const { iss, sub } = JSON.parse(atob(part));
    if (sub) user = `${iss}\n${sub}`;
  } catch {
    // Not a JWT: the token itself names the user.
  }
  if (!globalThis.crypto?.subtle) {
    return crypto.randomUUID();
  }
  const hash = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(user));
  return Array.from(new Uint8Array(hash, 0, 12), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/* One key per intent to buy. It is kept over a reload, so that a repeat after a lost answer is the
 * same order; a new page load after the user was led to the checkout begins a new intent. */

const led = new Set();

function intentFor(base, pack, saveCard) {
  const kept = readIntent(base);
  const same = kept && kept.pack === pack && Boolean(kept.saveCard) === saveCard;
  if (same && (!kept.id || led.has(kept.key))) {
    return kept;
  }
  const intent = { pack, saveCard, key: `buy:${randomId()}` };
  keepIntent(base, intent);
  return intent;
}

function keepIntent(base, intent) {
  if (intent.id) led.add(intent.key);
  try {
    sessionStorage.setItem(`credits:intent:${base}`, JSON.stringify(intent));
  } catch {
    // Storage is full or forbidden: a repeat after a reload is then a new order.
  }
}

function readIntent(base) {
  try {
    return JSON.parse(sessionStorage.getItem(`credits:intent:${base}`));
  } catch {
    return null;
  }
}

function dropIntent(base) {
  try {
    sessionStorage.removeItem(`credits:intent:${base}`);
  } catch {
    // As above.
  }
}

function randomId() {
  return crypto.randomUUID?.() ?? Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(16)).join("-");
}

const stores = new Map();

/** The store of a base address; the same one for the whole page. */
export function storeFor(base = HERE) {
  const { href } = new URL(base.endsWith("/") ? base : `${base}/`, globalThis.document?.baseURI ?? HERE);
  if (!stores.has(href)) {
    stores.set(href, new CreditsStore({ base: href }));
  }
  return stores.get(href);
}

/* --------------------------------------------------------------- elements */

const STYLE = `
:host { display: block; color: var(--credits-color, inherit); font: inherit;
  --_muted: var(--credits-muted, light-dark(#5b6472, #a6adba));
  --_line: var(--credits-line, light-dark(#dfe3e8, #3a414d));
  --_surface: var(--credits-surface, light-dark(#fff, #1b2028));
  --_accent: var(--credits-accent, light-dark(#3b49df, #9aa5ff));
  --_on-accent: var(--credits-on-accent, light-dark(#fff, #10131a));
  --_good: var(--credits-good, light-dark(#0b6e3f, #6ad6a0));
  --_bad: var(--credits-bad, light-dark(#b42318, #ff9c92));
  --_radius: var(--credits-radius, 0.625rem);
  --_gap: var(--credits-gap, 0.75rem); }
:host([hidden]), [hidden] { display: none !important; }
p { margin: 0; }
.quiet { color: var(--_muted); font-size: var(--credits-small, 0.875em); }
.number { font-variant-numeric: tabular-nums; }
.more { margin-block-start: var(--_gap); }
.sr { position: absolute; inline-size: 1px; block-size: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.card { background: var(--_surface); border: 1px solid var(--_line); border-radius: var(--_radius); padding: var(--_gap) calc(var(--_gap) * 1.25); }
.bad { color: var(--_bad); } .good { color: var(--_good); }
button { font: inherit; font-weight: 600; color: var(--_on-accent); background: var(--_accent); border: 1px solid transparent;
  border-radius: calc(var(--_radius) * 0.75); padding: 0.5em 0.9em; cursor: pointer; min-block-size: 2.5em; }
button:hover:not([aria-disabled=true]) { filter: brightness(1.08); }
button:focus-visible { outline: 3px solid var(--_accent); outline-offset: 2px; }
button[aria-disabled=true] { opacity: 0.65; cursor: default; }
button.plain { background: none; color: var(--_accent); border-color: var(--_line); }
p + button.plain { margin-block-start: var(--_gap); }
table { border-collapse: collapse; inline-size: 100%; }
th { text-align: start; font-weight: 600; color: var(--_muted); font-size: var(--credits-small, 0.875em); }
td, th { padding: 0.625em 0.5em; border-block-end: 1px solid var(--_line); vertical-align: top; }
th { padding-block-start: 0; }
td:first-child, th:first-child { padding-inline-start: 0; }
td:last-child, th:last-child { padding-inline-end: 0; }
tbody tr:last-child > * { border-block-end: 0; padding-block-end: 0; }
td.end, th.end { text-align: end; white-space: nowrap; }
td.text { overflow-wrap: anywhere; }
ul { list-style: none; margin: 0; padding: 0; }
@media (forced-colors: active) { button { border-color: ButtonText; } }
@media (prefers-reduced-motion: no-preference) { .fresh { animation: fresh 1s ease-out; } @keyframes fresh { from { color: var(--_accent); } } }
`;

let sheet = null;

function styles() {
  if (!sheet) {
    sheet = new CSSStyleSheet();
    sheet.replaceSync(STYLE);
  }
  return sheet;
}

function sheetOf(css) {
  const own = new CSSStyleSheet();
  own.replaceSync(css);
  return own;
}

/** Makes an element; `text` is never read as HTML. */
function make(tag, facts = {}, ...children) {
  const element = facts.svg
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(facts)) {
    if (name === "svg" || value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const Base = globalThis.HTMLElement ?? class {};

function providerOf(element) {
  for (let node = element; node; node = node.getRootNode().host) {
    const found = node.closest?.("credits-provider");
    if (found) return found;
  }
  return null;
}

/** Gives the elements within it an address, a token and texts. */
export class CreditsProvider extends Base {
  #store = null;
  #texts = {};
  #off = null;

  get store() {
    if (!this.#store) {
      this.#store = storeFor(this.getAttribute("base") ?? HERE);
      this.#store.credentials = this.getAttribute("credentials") ?? "same-origin";
    }
    return this.#store;
  }

  set token(token) {
    this.store.token = token;
  }

  set origins(origins) {
    this.store.origins = origins;
  }

  get texts() {
    return this.#texts;
  }

  set texts(own) {
    this.#texts = own ?? {};
    this.dispatchEvent(new Event("texts"));
  }

  /** Shows the refusal (a problem document, or the answer of the app's own API) to the user. */
  refuse(problem) {
    this.store.refuse(problem);
    announce(this, "credits-refused", problem);
  }

  /** Forgets the user; call it when the user signs out or in. */
  reset() {
    this.store.reset();
  }

  connectedCallback() {
    for (const name of ["token", "origins", "texts"]) upgrade(this, name);
    let last = null;
    const changed = () => {
      const { account } = this.store.snapshot;
      if (account && account !== last) announce(this, "credits-change", account);
      last = account;
    };
    const out = () => announce(this, "credits-signed-out");
    const { store } = this;
    store.addEventListener("signed-out", out);
    const unsubscribe = store.subscribe(changed);
    this.#off = () => {
      store.removeEventListener("signed-out", out);
      unsubscribe();
    };
  }

  disconnectedCallback() {
    this.#off?.();
  }
}

// A property that was set before the element was defined hides the accessor (custom elements are
// often upgraded after a framework has filled them in).
function upgrade(element, name) {
  if (Object.hasOwn(element, name)) {
    const value = element[name];
    delete element[name];
    element[name] = value;
  }
}

function announce(element, type, detail) {
  element.dispatchEvent(new CustomEvent(type, { bubbles: true, composed: true, detail }));
}

class CreditsElement extends Base {
  static css = "";
  #off = [];
  #asked = false;
  #away = false;
  store = null;

  connectedCallback() {
    if (!this.shadowRoot) {
      const root = this.attachShadow({ mode: "open" });
      const { constructor } = this;
      constructor.sheet ??= sheetOf(constructor.css);
      root.adoptedStyleSheets = [styles(), constructor.sheet];
    }
    this.provider = providerOf(this);
    this.store = this.provider?.store ?? storeFor(this.getAttribute("base") ?? HERE);
    for (const name of this.constructor.properties ?? []) upgrade(this, name);
    const draw = () => {
      this.#askInTime();
      this.draw();
    };
    this.#off = [this.store.subscribe(draw)];
    this.#hear(this.store, "buying", draw);
    this.#hear(this.store, "reset", () => {
      this.#asked = false;
      this.forget?.();
    });
    if (this.provider) this.#hear(this.provider, "texts", draw);
    this.connected?.();
    draw();
  }

  /** Data of the user is requested once a user is known, and again after an outage. */
  #askInTime() {
    const { account, status } = this.store.snapshot;
    const back = this.#away && status === "live";
    this.#away = status === "away";
    if ((account && !this.#asked) || (back && this.failed)) {
      this.#asked = true;
      this.ask?.();
    }
  }

  /** Whether its last request had no answer. */
  get failed() {
    return false;
  }

  disconnectedCallback() {
    for (const off of this.#off) off();
    this.#off = [];
    this.disconnected?.();
  }

  attributeChangedCallback(_name, before, after) {
    if (this.#asked && before !== after) this.ask?.();
  }

  #hear(target, type, listener) {
    target.addEventListener(type, listener);
    this.#off.push(() => target.removeEventListener(type, listener));
  }

  hear(target, type, listener) {
    this.#hear(target, type, listener);
  }

  get locale() {
    const written = this.closest("[lang]")?.lang || document.documentElement.lang;
    try {
      return new Intl.Locale(written || navigator.language).toString();
    } catch {
      return undefined;
    }
  }

  say(name, facts) {
    return phrase(this.provider?.texts ?? {}, name, this.locale, facts);
  }

  word(group, name) {
    const own = this.provider?.texts?.[group]?.[name];
    const spaced = name.replace(/_/g, " ");
    return own ?? texts[group][name] ?? spaced.charAt(0).toLocaleUpperCase(this.locale) + spaced.slice(1);
  }

  number(value, options) {
    return new Intl.NumberFormat(this.locale, options).format(value);
  }

  time(iso, options = { dateStyle: "medium", timeStyle: "short" }) {
    return new Intl.DateTimeFormat(this.locale, options).format(new Date(iso));
  }

  fill(...children) {
    this.shadowRoot.replaceChildren(...children.filter((child) => child));
  }
}

/** The headline: the spendable credits; beneath them what is held, owed, expiring or old. */
export class CreditsBalance extends CreditsElement {
  static css = `
    .headline { font-size: var(--credits-headline, 2.25rem); font-weight: 700; line-height: 1.1; margin: 0.1em 0; }
    .owed { color: var(--_bad); font-weight: 600; }`;
  #parts = null;
  #spoken = null;

  connected() {
    const parts = {
      label: make("p", { class: "label quiet", part: "label" }),
      value: make("p", { class: "headline number", part: "value" }),
      lines: make("div", { class: "quiet", part: "details" }),
      status: make("p", { class: "sr", role: "status" }),
    };
    this.#parts = parts;
    this.fill(parts.label, parts.value, parts.lines, parts.status);
  }

  draw() {
    const { label, value, lines, status } = this.#parts;
    const { account, asOf, status: state } = this.store.snapshot;
    label.textContent = this.say("balance");
    const details = [];
    if (!account) {
      value.textContent = "–";
      value.setAttribute("aria-busy", String(state === "loading" || state === "away"));
      value.setAttribute("aria-label", this.say("unknown"));
      value.setAttribute("role", "img");
      if (state === "signed-out") details.push([this.say("signedOut")]);
      if (state === "away") details.push([this.say("away")]);
      this.#spoken = null;
    } else {
      const before = value.textContent;
      value.textContent = this.number(account.spendable);
      for (const name of ["aria-busy", "aria-label", "role"]) value.removeAttribute(name);
      if (before !== value.textContent && before !== "–" && before !== "") {
        value.classList.remove("fresh");
        void value.offsetWidth;
        value.classList.add("fresh");
      }
      if (account.balance < 0) details.push([this.say("owed", { n: -account.balance }), "owed"]);
      if (account.held > 0) details.push([this.say("held", { n: account.held })]);
      const [next] = account.expiring;
      if (next) details.push([this.say("expiring", this.#onTheDayOf(next, account.expiring))]);
      if (account.frozen) details.push([this.say("frozen")]);
      if (asOf) details.push([this.say("asOf", { time: this.time(asOf, { timeStyle: "short" }) })]);
      // A screen reader speaks changes, but not the first value.
      if (this.#spoken !== null && this.#spoken !== account.spendable) {
        status.textContent = this.say("now", { n: account.spendable });
      }
      this.#spoken = account.spendable;
    }
    value.part.toggle("debt", Boolean(account && account.balance < 0));
    value.classList.toggle("bad", Boolean(account && account.balance < 0));
    lines.replaceChildren(...details.map(([text, kind]) => make("p", { text, class: kind })));
  }

  /** All credits that expire on the day of the next expiry, in the reader's time zone. */
  #onTheDayOf(next, expiring) {
    const year = (iso) => this.time(iso, { year: "numeric" });
    const thisYear = year(next.at) === year(new Date());
    const day = (iso) =>
      this.time(iso, { day: "numeric", month: "long", year: thisYear ? undefined : "numeric" });
    const date = day(next.at);
    const n = expiring.reduce((sum, { at, amount }) => sum + (day(at) === date ? amount : 0), 0);
    return { n, date };
  }
}

/** A quiet line while fewer credits are available than the account's threshold. */
export class CreditsLow extends CreditsElement {
  static css = `.card { border-inline-start: 0.25rem solid var(--_accent); }`;
  #line = null;

  connected() {
    // The element is there before its text, so that a screen reader speaks the text when it comes.
    this.#line = make("p", { part: "message" });
    this.fill(make("div", { role: "status", part: "card" }, this.#line));
  }

  draw() {
    const { account } = this.store.snapshot;
    const low = Boolean(account?.low);
    const n = account?.spendable;
    const text = low ? this.say(n > 0 ? "low" : "empty", { n }) : "";
    this.#line.parentElement.className = low ? "card" : "";
    if (this.#line.textContent !== text) this.#line.textContent = text;
  }
}

/** What work would cost: `items="stem_separation:1,render:3"`. Its `quote` holds the last answer. */
export class CreditsCost extends CreditsElement {
  static observedAttributes = ["items"];
  static css = `dl { display: grid; grid-template-columns: 1fr auto; gap: 0.25em var(--_gap); margin: 0; }
    dd { margin: 0; text-align: end; white-space: nowrap; } .total { font-weight: 700; } dl + p { margin-block-start: 0.5em; }`;
  quote = null;
  #failed = false;
  #asked = 0;
  #spendable = null;

  forget() {
    this.quote = null;
    this.#failed = false;
    this.draw();
  }

  ask() {
    this.#asked += 1;
    this.#ask(this.#asked);
  }

  get failed() {
    return this.#failed;
  }

  get items() {
    return (this.getAttribute("items") ?? "")
      .split(",")
      .map((item) => item.trim().split(":"))
      .filter(([operation]) => operation)
      .map(([operation, quantity]) => ({ operation, quantity: Number(quantity ?? 1) }));
  }

  set items(items) {
    const text = typeof items === "string" ? items : items.map((item) => `${item.operation}:${item.quantity ?? 1}`).join(",");
    this.setAttribute("items", text);
  }

  async #ask(number) {
    const { items } = this;
    this.#failed = false;
    if (!items.length) {
      this.quote = null;
      this.draw();
      return;
    }
    try {
      const quote = await this.store.quote(items);
      if (number !== this.#asked) return;
      this.quote = quote;
      announce(this, "credits-quote", quote);
    } catch {
      if (number !== this.#asked) return;
      this.quote = null;
      this.#failed = true;
    }
    this.draw();
  }

  draw() {
    const { account } = this.store.snapshot;
    const spendable = account?.spendable ?? null;
    // A new balance may change the answer; only the server says how.
    const before = this.#spendable;
    this.#spendable = spendable;
    if (this.quote && before !== null && spendable !== null && spendable !== before) {
      this.ask();
    }
    const { quote } = this;
    if (!quote) {
      this.fill(
        make("p", { class: "quiet", "aria-busy": String(!this.#failed), text: this.#failed ? this.say("away") : "–" }),
        this.#failed && make("button", { class: "plain", part: "button", type: "button", text: this.say("retry"), onclick: () => this.ask() }),
      );
      return;
    }
    const lines = quote.lines.flatMap((line) => [
      make("dt", { text: `${this.number(line.quantity)} × ${this.word("operations", line.operation)}` }),
      make("dd", { class: "number", text: this.number(line.cost) }),
    ]);
    const verdict = quote.affordable
      ? make("p", { class: "quiet", part: "verdict", text: this.say("affordable") })
      : make("p", { class: "bad", part: "verdict", text: this.say("short", { n: quote.shortfall }) });
    this.fill(
      make("dl", { part: "lines" }, ...lines,
        make("dt", { class: "total", part: "total", text: this.say("total") }),
        make("dd", { class: "total number", part: "total", text: this.say("cost", { n: quote.total }) })),
      verdict,
    );
  }
}

function buyButton(element, pack, failed) {
  const { store } = element;
  const price = money(pack.amount_minor, pack.currency, element.locale);
  const busy = store.buying;
  return make("button", {
    type: "button",
    part: "button",
    "aria-disabled": busy ? "true" : null,
    "aria-label": busy ? null : element.say("buyPack", { name: pack.name, price }),
    text: busy ? element.say("buying") : `${element.say("buy")} · ${price}`,
    onclick: () => {
      failed(null);
      store.buy(pack.id, { saveCard: element.hasAttribute("save-card") }).catch((error) => {
        failed(error);
        announce(element, "credits-refused", error);
      });
    },
  });
}

function failureText(element, error) {
  if (error.reason === "CHECKOUT_HOST") return element.say("checkoutHost");
  return element.say("checkoutFailed");
}

/** Draws again and keeps the focus, although the focused button is replaced. */
function keepFocus(root, draw) {
  const at = root.activeElement?.dataset?.key;
  draw();
  if (at) root.querySelector(`[data-key="${CSS.escape(at)}"]`)?.focus();
}

function validText(element, pack) {
  return element.say("validFor", { duration: duration(pack.valid_for_seconds, element.locale) });
}

/** The packs on sale, each with a button that opens its checkout. */
export class CreditsPacks extends CreditsElement {
  static css = `ul { display: grid; gap: var(--_gap); grid-template-columns: repeat(auto-fit, minmax(min(100%, 12rem), 1fr)); }
    li { max-inline-size: 24rem; display: flex; flex-direction: column; gap: 0.5em; }
    .name { font-weight: 600; } .credits { font-size: 1.5em; font-weight: 700; line-height: 1.2; } li button { margin-block-start: auto; }
    p { overflow-wrap: anywhere; } ul + p:not(:empty) { margin-block-start: var(--_gap); }`;
  #packs = null;
  #error = null;
  #failed = false;

  get failed() {
    return this.#failed;
  }

  connected() {
    this.hear(globalThis, "pageshow", ({ persisted }) => persisted && this.store.stopBuying());
  }

  forget() {
    this.#packs = null;
    this.#failed = false;
    this.draw();
  }

  async ask() {
    this.#failed = false;
    this.draw();
    try {
      this.#packs = (await this.store.packs()).items;
    } catch (error) {
      // The gateway sells nothing, which is not a failure.
      if (error.status === 404) this.#packs = [];
      else this.#failed = true;
    }
    if (this.isConnected) this.draw();
  }

  draw() {
    keepFocus(this.shadowRoot, () => this.#draw());
  }

  #draw() {
    if (this.#failed) {
      this.fill(
        make("p", { class: "quiet", text: this.say("away") }),
        make("button", { class: "plain", part: "button", type: "button", text: this.say("retry"), onclick: () => this.ask() }),
      );
      return;
    }
    if (!this.#packs) {
      this.fill(make("p", { class: "quiet", "aria-busy": "true", text: "–" }));
      return;
    }
    if (!this.#packs.length) {
      this.fill(make("p", { class: "quiet", text: this.say("noPacks") }));
      return;
    }
    const items = this.#packs.map((pack) => {
      const button = buyButton(this, pack, (error) => {
        this.#error = error;
        if (error) this.draw();
      });
      button.dataset.key = pack.id;
      return make("li", { class: "card", part: "pack" },
        make("p", { class: "name", text: pack.name }),
        make("p", { class: "credits number", text: this.say("cost", { n: pack.credits }) }),
        pack.valid_for_seconds && make("p", { class: "quiet", part: "valid", text: validText(this, pack) }),
        button);
    });
    const error = make("p", { role: "alert", class: "bad", part: "error", text: this.#error ? failureText(this, this.#error) : "" });
    this.fill(make("ul", { part: "packs" }, ...items), error);
  }
}

/** Explains a refusal: the missing credits, and the smallest pack that covers them. */
export class CreditsShortfall extends CreditsElement {
  static css = `.card { border-color: var(--_bad); } p { margin: 0 0 0.5em; } .head { font-weight: 700; }`;
  #packs = [];
  #error = null;

  connected() {
    this.hear(globalThis, "pageshow", ({ persisted }) => persisted && this.store.stopBuying());
  }

  /** The refusal to show; by default the last one the provider was given. */
  get problem() {
    return this.store?.snapshot.refusal ?? null;
  }

  set problem(problem) {
    if (problem) this.store.refuse(problem);
    else this.store.clearRefusal();
  }

  draw() {
    const { problem } = this;
    if (!problem?.shortfall) {
      this.fill();
      return;
    }
    if (!this.#packs.length && !this.#error) {
      this.store.packs().then(({ items }) => {
        this.#packs = items;
        if (items.length && this.isConnected) this.draw();
      }, () => {});
    }
    const covering = this.#packs.filter((pack) => pack.credits >= problem.shortfall).sort((a, b) => a.credits - b.credits)[0]
      ?? [...this.#packs].sort((a, b) => b.credits - a.credits)[0];
    keepFocus(this.shadowRoot, () => {
      const button = covering && buyButton(this, covering, (error) => {
        this.#error = error;
        if (error) this.draw();
      });
      if (button) button.dataset.key = "buy";
      this.fill(
        make("div", { class: "card", part: "card", role: "alert" },
          make("p", { class: "head bad", text: this.say("needed", { n: problem.shortfall }) }),
          problem.required !== undefined && make("p", { class: "quiet", text: this.say("neededDetail", { required: problem.required, available: Math.max(0, problem.available) }) }),
          covering && make("p", { text: `${covering.name}: ${this.say("cost", { n: covering.credits })}` }),
          covering?.valid_for_seconds && make("p", { class: "quiet", part: "valid", text: validText(this, covering) }),
          button,
          this.#error && make("p", { class: "bad", text: failureText(this, this.#error) })),
      );
    });
  }
}

/** What moved the balance, newest first. Attributes: `limit` (20), `types` (comma separated). */
export class CreditsHistory extends CreditsElement {
  static observedAttributes = ["limit", "types"];
  static css = `time { white-space: nowrap; } @media (max-width: 30rem) { .after { display: none; } .end { padding-inline-end: 0; } }`;
  #items = [];
  #cursor = null;
  #state = "loading";
  #load = 0;
  #fresh = refresher(2000, () => this.#read({ onward: false }));

  get failed() {
    return this.#state === "failed";
  }

  disconnected() {
    this.#fresh.stop();
  }

  ask() {
    this.#items = [];
    this.#cursor = null;
    this.#read({ onward: false });
  }

  forget() {
    this.#load += 1;
    this.#items = [];
    this.#cursor = null;
    this.#state = "loading";
    this.draw();
  }

  async #read({ onward }) {
    const load = ++this.#load;
    const types = (this.getAttribute("types") ?? "").split(",").map((type) => type.trim()).filter(Boolean);
    const limit = Number(this.getAttribute("limit")) || 20;
    this.#state = "loading";
    this.draw();
    try {
      const page = await this.store.transactions({ cursor: onward ? this.#cursor : null, limit, types });
      if (load !== this.#load) return;
      const read = new Set(page.items.map((item) => item.id));
      const others = this.#items.filter((item) => !read.has(item.id));
      if (onward) {
        this.#items = [...others, ...page.items];
        this.#cursor = page.next_cursor;
      } else if (this.#items.length && others.length < this.#items.length) {
        // It meets the entries that were read before, so there is no gap.
        this.#items = [...page.items, ...others];
      } else {
        this.#items = page.items;
        this.#cursor = page.next_cursor;
      }
      this.#state = "ready";
    } catch {
      if (load !== this.#load) return;
      this.#state = "failed";
    }
    if (this.isConnected) this.draw();
  }

  draw() {
    const { account, status } = this.store.snapshot;
    this.#fresh.saw(account);
    if (status === "signed-out") {
      this.#items = [];
      this.#cursor = null;
      this.fill(make("p", { class: "quiet", text: this.say("signedOut") }));
      return;
    }
    keepFocus(this.shadowRoot, () => this.#draw());
  }

  #draw() {
    const rows = this.#items.map((item) =>
      make("tr", { part: "row" },
        make("td", { class: "text" },
          make("div", { dir: "auto", text: this.#title(item) }),
          make("div", { class: "quiet" },
            ...(item.description && item.operation ? [make("bdi", { text: item.description }), " · "] : []),
            make("time", { datetime: item.timestamp, text: this.#when(item.timestamp) }))),
        make("td", { class: `end number ${item.balance_change < 0 ? "" : "good"}`, text: this.number(item.balance_change, { signDisplay: "exceptZero" }) }),
        make("td", { class: `end number after ${item.balance_after < 0 ? "bad" : ""}`, text: this.number(item.balance_after) })));
    const head = make("tr", {}, ...["what", "change", "after"].map((name, at) =>
      make("th", { scope: "col", class: at > 0 ? `end ${name}` : "", text: this.say(name) })));
    const busy = this.#state === "loading";
    this.fill(
      rows.length ? make("table", { part: "table", "aria-busy": String(busy) },
        make("caption", { class: "sr", text: this.say("history") }),
        make("thead", {}, head), make("tbody", {}, ...rows)) : null,
      !rows.length && this.#state === "ready" && make("p", { class: "quiet", text: this.say("none") }),
      !rows.length && busy && make("p", { class: "quiet", "aria-busy": "true", text: "–" }),
      this.#state === "failed" && make("p", { class: "quiet", role: "status", text: this.say("away") }),
      this.#state === "failed" && make("button", { class: "plain", "data-key": "retry", part: "button", type: "button", text: this.say("retry"), onclick: () => this.#read({ onward: Boolean(this.#items.length && this.#cursor) }) }),
      this.#cursor && this.#state !== "failed" && make("button", { class: "plain more", "data-key": "more", part: "button", type: "button", "aria-disabled": busy ? "true" : null, text: this.say("more"), onclick: () => busy || this.#read({ onward: true }) }),
    );
  }

  #when(iso) {
    const thisYear = new Date(iso).getFullYear() === new Date().getFullYear();
    return this.time(iso, thisYear ? { month: "short", day: "numeric", hour: "numeric", minute: "2-digit" } : undefined);
  }

  #title(item) {
    if (item.operation) {
      const times = item.quantity > 1 ? `\u00a0×\u00a0${this.number(item.quantity)}` : "";
      const verb = item.type === "refund" ? `${this.word("types", "refund")}: ` : "";
      return `${verb}${this.word("operations", item.operation)}${times}`;
    }
    return item.description || this.word("types", item.type);
  }
}

/** Reads again after the account has changed, at most once in `ms` milliseconds. */
function refresher(ms, read) {
  let last = null;
  let timer = null;
  let readAt = 0;
  return {
    saw(account) {
      const seen = account && `${account.updated_at} ${account.seq}`;
      if (seen && last !== null && seen !== last) {
        timer ??= setTimeout(() => {
          timer = null;
          readAt = Date.now();
          read();
        }, Math.max(0, readAt + ms - Date.now()));
      }
      last = seen || last;
    },
    stop() {
      clearTimeout(timer);
      timer = null;
    },
  };
}

const DAY_MS = 86_400_000;
const isoDay = (time) => new Date(time).toISOString().slice(0, 10);

/** Credits used by day, stacked by operation; a table says the same to screen readers. */
export class CreditsUsage extends CreditsElement {
  static observedAttributes = ["days"];
  static css = `
    :host { --_1: var(--credits-series-1, light-dark(#3b49df, #8f9bff)); --_2: var(--credits-series-2, light-dark(#0f8a6d, #4fd1ab));
      --_3: var(--credits-series-3, light-dark(#c2571a, #ffab73)); --_4: var(--credits-series-4, light-dark(#9333a8, #e29bf2));
      --_5: var(--credits-series-5, light-dark(#8a6d00, #e6c84f)); --_6: var(--credits-series-6, light-dark(#5b6472, #a6adba)); }
    svg { direction: ltr; display: block; inline-size: 100%; block-size: auto; overflow: visible; }
    figure { margin: 0; } figcaption { margin-block-end: 0.5em; }
    text { fill: var(--_muted); font-size: 11px; font-family: inherit; } line { stroke: var(--_line); }
    .s1 { fill: var(--_1); background: var(--_1); } .s2 { fill: var(--_2); background: var(--_2); } .s3 { fill: var(--_3); background: var(--_3); }
    .s4 { fill: var(--_4); background: var(--_4); } .s5 { fill: var(--_5); background: var(--_5); } .s6 { fill: var(--_6); background: var(--_6); }
    .legend { display: flex; flex-wrap: wrap; gap: 0.25em 1em; margin-block-start: 0.5em; }
    .swatch { display: inline-block; inline-size: 0.75em; block-size: 0.75em; border-radius: 0.2em; margin-inline-end: 0.4em; forced-color-adjust: none; }
    rect { forced-color-adjust: none; }`;
  #usage = null;
  #failed = false;
  #load = 0;
  #fresh = refresher(5000, () => this.ask());

  get failed() {
    return this.#failed;
  }

  #size = globalThis.ResizeObserver && new ResizeObserver(() => {
    if (Math.abs(this.clientWidth - this.#width) > 8) this.#draw();
  });
  #width = 0;

  connected() {
    this.#size?.observe(this);
  }

  disconnected() {
    this.#size?.disconnect();
    this.#fresh.stop();
  }

  forget() {
    this.#load += 1;
    this.#usage = null;
    this.#failed = false;
    this.#draw();
  }

  async ask() {
    const load = ++this.#load;
    const days = Math.min(31, Math.max(1, Number(this.getAttribute("days") ?? 30) || 30));
    const today = Date.now();
    try {
      const usage = await this.store.usage({ from: isoDay(today - (days - 1) * DAY_MS), to: isoDay(today) });
      if (load !== this.#load) return;
      this.#usage = usage;
      this.#failed = false;
    } catch {
      if (load !== this.#load) return;
      this.#failed = true;
    }
    if (this.isConnected) this.#draw();
  }

  draw() {
    const { account, status } = this.store.snapshot;
    this.#fresh.saw(account);
    if (status === "signed-out") this.#usage = null;
    this.#draw();
  }

  #draw() {
    if (!this.#usage) {
      this.fill(
        make("p", { class: "quiet", "aria-busy": String(!this.#failed), text: this.#failed ? this.say("away") : "–" }),
        this.#failed && make("button", { class: "plain", part: "button", type: "button", text: this.say("retry"), onclick: () => this.ask() }),
      );
      return;
    }
    const { from, to, days } = this.#usage;
    const used = new Map();
    const sums = new Map();
    for (const { date, operation, spent } of days) {
      if (!(spent > 0)) continue;
      const name = operation || "";
      used.set(`${date} ${name}`, (used.get(`${date} ${name}`) ?? 0) + spent);
      sums.set(name, (sums.get(name) ?? 0) + spent);
    }
    if (!sums.size) {
      this.fill(make("p", { class: "quiet", text: this.say("usageNone") }));
      return;
    }
    const names = [...sums.keys()].sort((a, b) => sums.get(b) - sums.get(a));
    const dates = [];
    for (let at = Date.parse(from); at <= Date.parse(to); at += DAY_MS) dates.push(isoDay(at));
    const title = (name) => (name ? this.word("operations", name) : this.word("types", "spend"));
    this.fill(
      make("figure", { part: "figure" },
        make("figcaption", { class: "quiet", text: this.say("usage") }),
        this.#picture(dates, names, used, title),
        make("div", { class: "legend quiet", part: "legend", "aria-hidden": "true" }, ...names.map((name, at) =>
          make("span", {}, make("span", { class: `swatch s${Math.min(at, 5) + 1}` }), title(name))))),
      make("div", { class: "sr" }, this.#table(dates, names, used, title)),
    );
  }

  #picture(dates, names, used, title) {
    // Drawn for the width there is, so that its text keeps its size.
    this.#width = this.clientWidth;
    const width = Math.max(240, this.#width || 640);
    const [height, start, bottom, top] = [220, 44, 24, 10];
    const total = (date) => names.reduce((sum, name) => sum + (used.get(`${date} ${name}`) ?? 0), 0);
    const most = niceCeiling(Math.max(...dates.map(total)));
    const step = (width - start) / dates.length;
    const y = (value) => top + (height - top - bottom) * (1 - value / most);
    const svg = make("svg", { svg: true, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": this.say("usage"), part: "chart" });
    for (const value of [0, most / 2, most]) {
      svg.append(
        make("line", { svg: true, x1: start, x2: width, y1: y(value), y2: y(value) }),
        make("text", { svg: true, x: start - 6, y: y(value) + 4, "text-anchor": "end", text: this.number(value, { notation: "compact" }) }),
      );
    }
    dates.forEach((date, at) => {
      let below = 0;
      names.forEach((name, series) => {
        const spent = used.get(`${date} ${name}`) ?? 0;
        if (!spent) return;
        const [high, low] = [y(below + spent), y(below)];
        below += spent;
        svg.append(make("rect", { svg: true, class: `s${Math.min(series, 5) + 1}`, x: start + at * step + step * 0.15, width: step * 0.7, y: high, height: Math.max(low - high, 1), rx: Math.min(2, step * 0.2) },
          make("title", { svg: true, text: `${this.#day(date)}: ${title(name)} ${this.number(spent)}` })));
      });
      const every = Math.ceil((dates.length * 70) / (width - start));
      const last = at === dates.length - 1;
      if ((dates.length - 1 - at) % every === 0 && (last || at * step > 20)) {
        const x = last && step < 50 ? width : start + at * step + step / 2;
        svg.append(make("text", { svg: true, x, y: height - 6, "text-anchor": x === width ? "end" : "middle", text: this.#day(date) }));
      }
    });
    return svg;
  }

  #table(dates, names, used, title) {
    const rows = dates.filter((date) => names.some((name) => used.has(`${date} ${name}`))).map((date) =>
      make("tr", {}, make("th", { scope: "row", text: this.#day(date) }), ...names.map((name) =>
        make("td", { class: "end number", text: this.number(used.get(`${date} ${name}`) ?? 0) }))));
    return make("table", {},
      make("caption", { text: this.say("usage") }),
      make("thead", {}, make("tr", {}, make("th", { scope: "col", text: this.say("day") }), ...names.map((name) => make("th", { scope: "col", text: title(name) })))),
      make("tbody", {}, ...rows));
  }

  #day(date) {
    return this.time(`${date}T00:00:00Z`, { month: "short", day: "numeric", timeZone: "UTC" });
  }
}

/** The next of 2, 4, 6, 8, 10, 20, 40 ...: half of it is a whole number too. */
function niceCeiling(value) {
  for (let unit = 1; ; unit *= 10) {
    for (const step of [2, 4, 6, 8, 10]) {
      if (value <= unit * step) return unit * step;
    }
  }
}

const CHECK_AFTER_MS = [0, 1000, 2000, 3000, 5000, 8000, 15000, 30000];

/** The outcome of a payment, on the page to which the checkout returns. */
export class CreditsReturn extends CreditsElement {
  static css = `.head { font-weight: 600; }`;
  #checkout = null;
  #state = "checking";
  #id = null;
  #stopped = null;

  connected() {
    const name = this.getAttribute("param") ?? "checkout";
    const url = new URL(location.href);
    const key = `credits:return:${location.pathname}`;
    this.#id = url.searchParams.get(name);
    try {
      if (this.#id) sessionStorage.setItem(key, this.#id);
      else this.#id = sessionStorage.getItem(key);
    } catch {
      // A reload then shows nothing; the balance is still right.
    }
    if (url.searchParams.has(name)) {
      url.searchParams.delete(name);
      history.replaceState(history.state, "", url);
    }
    this.#stopped = new AbortController();
    if (this.#id) this.#watch(this.#stopped.signal);
  }

  disconnected() {
    this.#stopped?.abort();
  }

  async #watch(stopped) {
    await pageIsReady();
    for (let tries = 0; !stopped.aborted; tries += 1) {
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, CHECK_AFTER_MS[Math.min(tries, CHECK_AFTER_MS.length - 1)]);
        const early = () => {
          if (!document.hidden) {
            clearTimeout(timer);
            resolve();
          }
        };
        document.addEventListener("visibilitychange", early, { once: true });
      });
      if (stopped.aborted) return;
      try {
        this.#checkout = await this.store.refreshCheckout(this.#id);
        this.#state = this.#checkout.state;
      } catch (error) {
        this.#state = error.status === 404 ? "unknown" : this.#checkout ? this.#state : "away";
      }
      if (stopped.aborted) return;
      this.draw();
      if (["credited", "expired", "unknown"].includes(this.#state)) {
        this.store.stopBuying();
        announce(this, "credits-return", { id: this.#id, state: this.#state });
        return;
      }
    }
  }

  draw() {
    if (!this.#id) {
      this.fill();
      return;
    }
    const { credits } = this.#checkout ?? {};
    const sentence = {
      checking: () => this.say("returnChecking"),
      credited: () => (credits ? this.say("returnCredited", { n: credits }) : this.say("returnCreditedSome")),
      processing: () => this.say("returnProcessing"),
      open: () => this.say("returnOpen"),
      expired: () => this.say("returnExpired"),
      unknown: () => this.say("returnUnknown"),
      away: () => this.say("returnAway"),
    }[this.#state];
    let line = this.shadowRoot.querySelector("p");
    if (!line) {
      line = make("p", { role: "status", part: "message" });
      this.fill(make("div", { class: "card", part: "card" }, line));
    }
    line.className = `head ${this.#state === "credited" ? "good" : ""}`;
    const text = sentence();
    if (line.textContent !== text) line.textContent = text;
    line.setAttribute("aria-busy", String(["checking", "away"].includes(this.#state)));
  }
}

if (globalThis.customElements) {
  for (const [name, element] of Object.entries({
    "credits-provider": CreditsProvider,
    "credits-balance": CreditsBalance,
    "credits-low": CreditsLow,
    "credits-cost": CreditsCost,
    "credits-packs": CreditsPacks,
    "credits-shortfall": CreditsShortfall,
    "credits-history": CreditsHistory,
    "credits-usage": CreditsUsage,
    "credits-return": CreditsReturn,
  })) {
    if (!customElements.get(name)) customElements.define(name, element);
  }
}
