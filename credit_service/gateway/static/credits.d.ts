/** Types of `credits.js`: custom elements over one live store of a user's credits. */

/** The newest account from the server. Credits are whole numbers; times are RFC 3339 in UTC. */
export interface Account {
  readonly balance: number;
  readonly held: number;
  /** balance - held */
  readonly available: number;
  /** What a spend may take now; 0 while the account is frozen. */
  readonly spendable: number;
  readonly min_balance: number;
  /** The account is low while fewer credits than this are available; null: no threshold. */
  readonly alert_below: number | null;
  /** Whether fewer are available; false while the account is frozen. */
  readonly low: boolean;
  readonly frozen: boolean;
  readonly seq: number;
  readonly updated_at: string | null;
  /** The next times at which credits expire, three at most, earliest first. */
  readonly expiring: readonly Expiring[];
}

export interface Expiring {
  readonly amount: number;
  readonly at: string;
}

export interface Snapshot {
  readonly status: "loading" | "live" | "away" | "signed-out";
  /** null while it is not known; never 0 instead. */
  readonly account: Account | null;
  /** Set while the shown state may be old. */
  readonly asOf: Date | null;
  readonly refusal: Problem | null;
}

/** A problem document (RFC 9457) with the reason and its figures. */
export interface Problem {
  readonly status: number;
  readonly title?: string;
  readonly detail?: string;
  readonly reason?: string;
  readonly required?: number;
  readonly available?: number;
  readonly held?: number;
  readonly shortfall?: number;
  readonly cost?: number;
  readonly [figure: string]: unknown;
}

export class CreditsProblem extends Error implements Problem {
  readonly [figure: string]: unknown;
  readonly status: number;
  readonly reason?: string;
  readonly retryAfterSeconds: number | null;
}

export type TransactionType =
  | "purchase"
  | "spend"
  | "refund"
  | "hold"
  | "capture"
  | "release"
  | "expire"
  | "grant"
  | "reversal"
  | "adjustment"
  | "lapse"
  | "revocation";

export interface Transaction {
  readonly id: string;
  readonly seq: number;
  readonly type: TransactionType;
  readonly amount: number;
  readonly balance_change: number;
  readonly held_change: number;
  readonly balance_after: number;
  readonly held_after: number;
  readonly description: string;
  readonly timestamp: string;
  readonly operation: string | null;
  readonly quantity: number | null;
  readonly unit_cost: number | null;
  readonly related_transaction_id: string | null;
  readonly hold_id: string | null;
}

export interface Hold {
  readonly id: string;
  readonly state: "held" | "captured" | "released" | "expired";
  readonly amount: number;
  readonly operation: string | null;
  readonly quantity: number | null;
  readonly created_at: string;
  readonly expires_at: string;
  readonly description: string;
}

export interface Page<Item> {
  readonly items: readonly Item[];
  readonly next_cursor: string | null;
}

export interface Price {
  readonly operation: string;
  readonly unit_cost: number;
  readonly unit: string;
}

export interface QuoteItem {
  readonly operation: string;
  readonly quantity?: number;
}

export interface Quote {
  readonly lines: readonly {
    readonly operation: string;
    readonly quantity: number;
    readonly unit_cost: number;
    readonly cost: number;
  }[];
  /** Pass it to the app's own job route, which hands it on as `expected_cost`. */
  readonly total: number;
  readonly price_version: string;
  readonly spendable: number;
  readonly affordable: boolean;
  readonly shortfall: number;
}

export interface UsageLine {
  readonly date: string;
  readonly operation: string;
  readonly spent: number;
  readonly refunded: number;
}

export interface Usage {
  readonly from: string;
  readonly to: string;
  readonly days: readonly UsageLine[];
}

export interface Pack {
  readonly id: string;
  readonly name: string;
  readonly credits: number;
  readonly amount_minor: number;
  readonly currency: string;
  /** How long its credits can be used after the purchase; null: they do not expire. */
  readonly valid_for_seconds: number | null;
}

export interface Checkout {
  readonly id: string;
  readonly state: "open" | "processing" | "credited" | "expired";
  readonly credits: number | null;
}

/** Gives a bearer token; `fresh` asks for a renewed one after the last was refused. */
export type Token = (options: { fresh: boolean }) => Promise<string | null> | string | null;

export interface StoreOptions {
  base?: string;
  token?: Token | null;
  origins?: readonly string[];
  credentials?: RequestCredentials;
}

export class CreditsStore extends EventTarget {
  constructor(options?: StoreOptions);
  readonly snapshot: Snapshot;
  readonly base: string;
  readonly buying: boolean;
  credentials: RequestCredentials;
  set token(token: Token | null);
  set origins(origins: readonly string[]);
  reset(): void;
  subscribe(listener: () => void): () => void;
  refuse(problem: Problem): void;
  clearRefusal(): void;
  config(): Promise<{
    readonly checkout_hosts: readonly string[];
    readonly portal_hosts: readonly string[];
  }>;
  prices(): Promise<{ readonly items: readonly Price[]; readonly price_version: string }>;
  packs(): Promise<{ readonly items: readonly Pack[] }>;
  quote(items: readonly QuoteItem[]): Promise<Quote>;
  transactions(page?: {
    cursor?: string | null;
    limit?: number;
    types?: readonly TransactionType[];
  }): Promise<Page<Transaction>>;
  holds(page?: { cursor?: string | null; limit?: number }): Promise<Page<Hold>>;
  usage(days?: { from?: string; to?: string }): Promise<Usage>;
  buy(pack: string, options?: { readonly saveCard?: boolean }): Promise<void>;
  stopBuying(): void;
  checkout(id: string): Promise<Checkout>;
  refreshCheckout(id: string): Promise<Checkout>;
  portal(): Promise<void>;
  request(
    path: string,
    options?: { body?: unknown; key?: string; signal?: AbortSignal },
  ): Promise<unknown>;
}

/** The store of a base address; the same one for everything on the page. */
export function storeFor(base?: string): CreditsStore;

/** Writes an amount in minor units of a currency in the locale's own way. */
export function money(amountMinor: number, currency: string, locale?: string): string;

/** Writes a length of time in whole years of 365 days, or else in days, hours or minutes. */
export function duration(seconds: number, locale?: string): string;

export type Text = string | { readonly one?: string; readonly other: string; readonly [category: string]: string | undefined };

/** Texts by name; see `texts` in the module for the names. */
export interface Texts {
  [name: string]: Text | Record<string, string>;
}

export const texts: Texts;

export class CreditsProvider extends HTMLElement {
  readonly store: CreditsStore;
  set token(token: Token | null);
  set origins(origins: readonly string[]);
  texts: Texts;
  refuse(problem: Problem): void;
  reset(): void;
}

export class CreditsBalance extends HTMLElement {}
export class CreditsLow extends HTMLElement {}
export class CreditsCost extends HTMLElement {
  readonly quote: Quote | null;
  get items(): readonly QuoteItem[];
  set items(items: string | readonly QuoteItem[]);
}
export class CreditsPacks extends HTMLElement {}
export class CreditsShortfall extends HTMLElement {
  get problem(): Problem | null;
  set problem(problem: Problem | null);
}
export class CreditsHistory extends HTMLElement {}
export class CreditsUsage extends HTMLElement {}
export class CreditsReturn extends HTMLElement {}

declare global {
  interface HTMLElementTagNameMap {
    "credits-provider": CreditsProvider;
    "credits-balance": CreditsBalance;
    "credits-low": CreditsLow;
    "credits-cost": CreditsCost;
    "credits-packs": CreditsPacks;
    "credits-shortfall": CreditsShortfall;
    "credits-history": CreditsHistory;
    "credits-usage": CreditsUsage;
    "credits-return": CreditsReturn;
  }
  interface HTMLElementEventMap {
    "credits-change": CustomEvent<Account>;
    "credits-refused": CustomEvent<Problem>;
    "credits-signed-out": CustomEvent<null>;
    "credits-quote": CustomEvent<Quote>;
    "credits-return": CustomEvent<{ id: string; state: Checkout["state"] | "unknown" }>;
  }
}
