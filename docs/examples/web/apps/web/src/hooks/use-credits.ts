/**
 * Live credits in React, over the same store as the custom elements.
 *
 * `credit-gateway files apps/web/src/credits` writes `credits.js` and its types beside the app.
 */
import { useCallback, useEffect, useMemo, useState, useSyncExternalStore } from "react";

import {
  storeFor,
  type CreditsStore,
  type Pack,
  type Problem,
  type Quote,
  type QuoteItem,
  type Snapshot,
} from "../credits/credits.js";

/** Where the gateway is mounted; the same origin as the page, so that its cookie or token is sent. */
export const CREDITS_BASE = "/credits/";

// The state on a server, and in a browser before its first request: nothing is known yet.
const UNKNOWN: Snapshot = { status: "loading", account: null, asOf: null, refusal: null };

export function useCreditsStore(): CreditsStore {
  return useMemo(() => storeFor(CREDITS_BASE), []);
}

export interface Credits extends Snapshot {
  readonly store: CreditsStore;
  /** How many credits a spend may take now; null while unknown. */
  readonly spendable: number | null;
  /** Whether fewer credits are available than the account's threshold; false while unknown. */
  readonly low: boolean;
}

/** The signed-in user's credits, again after each change. */
export function useCredits(): Credits {
  const store = useCreditsStore();
  const snapshot = useSyncExternalStore(
    useCallback((listener: () => void) => store.subscribe(listener), [store]),
    () => store.snapshot,
    () => UNKNOWN,
  );
  const { account } = snapshot;
  return {
    ...snapshot,
    store,
    spendable: account?.spendable ?? null,
    low: account?.low ?? false,
  };
}

export type Asked<T> =
  | { readonly state: "asking"; readonly value: null; readonly problem: null }
  | { readonly state: "known"; readonly value: T; readonly problem: null }
  | { readonly state: "failed"; readonly value: null; readonly problem: unknown };

const ASKING = { state: "asking", value: null, problem: null } as const;

function useAsked<T>(ask: () => Promise<T>, again: unknown): Asked<T> {
  const [asked, setAsked] = useState<Asked<T>>(ASKING);
  useEffect(() => {
    let current = true;
    ask().then(
      (value) => current && setAsked({ state: "known", value, problem: null }),
      (problem: unknown) => current && setAsked({ state: "failed", value: null, problem }),
    );
    return () => {
      current = false;
    };
  }, [ask, again]);
  return asked;
}

/** What the work would cost now. Send `total` to the job route as `expected_cost`. */
export function useQuote(items: readonly QuoteItem[]): Asked<Quote> {
  const { store, spendable } = useCredits();
  const wanted = JSON.stringify(items);
  const ask = useCallback(
    () => store.quote(JSON.parse(wanted) as readonly QuoteItem[]),
    [store, wanted],
  );
  // A new balance may change what is affordable, so the server is asked again.
  return useAsked(ask, spendable);
}

/** The packs on sale. */
export function usePacks(): Asked<readonly Pack[]> {
  const store = useCreditsStore();
  const ask = useCallback(async () => (await store.packs()).items, [store]);
  return useAsked(ask, null);
}

export interface Purchase {
  /** True from the click until the page is left, or the checkout could not be opened. */
  readonly busy: boolean;
  readonly failed: boolean;
  readonly buy: (pack: string) => void;
}

/** Buys packs: one order, however often the button is clicked. */
export function usePurchase(): Purchase {
  const store = useCreditsStore();
  const [failed, setFailed] = useState(false);
  const busy = useSyncExternalStore(
    useCallback(
      (listener: () => void) => {
        const shown = (event: PageTransitionEvent) => {
          if (event.persisted) store.stopBuying();
        };
        store.addEventListener("buying", listener);
        window.addEventListener("pageshow", shown);
        return () => {
          store.removeEventListener("buying", listener);
          window.removeEventListener("pageshow", shown);
        };
      },
      [store],
    ),
    () => store.buying,
    () => false,
  );
  const buy = useCallback(
    (pack: string) => {
      setFailed(false);
      store.buy(pack).catch(() => setFailed(true));
    },
    [store],
  );
  return { busy, failed, buy };
}

/** Sends a job to the app's own API; a refusal for credits is shown by `<Shortfall>`. */
export function useJob<Job>(path: string): (body: object) => Promise<Job> {
  const store = useCreditsStore();
  return useCallback(
    async (body: object) => {
      const response = await fetch(path, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(body),
      });
      if (!response.ok) {
        const problem = (await response.json().catch(() => ({}))) as Problem;
        if (response.status === 402) store.refuse(problem);
        throw new Error(problem.detail ?? `The job was not started (HTTP ${response.status}).`);
      }
      return (await response.json()) as Job;
    },
    [path, store],
  );
}
