"use client";

import type { QuoteItem } from "../../credits/credits.js";
import { useJob } from "../../hooks/use-credits";
import { Balance } from "./balance";
import { Cost } from "./cost";
import { Packs } from "./packs";
import { Shortfall } from "./shortfall";

export { Balance, Cost, Packs, Shortfall };

/** Everything together: the balance, what a job costs and its start, a refusal, the packs. */
export function CreditsPanel({ items, locale }: { items: readonly QuoteItem[]; locale: string }) {
  const startJob = useJob<{ id: string }>("/jobs");
  return (
    <div className="credits-panel">
      <Balance locale={locale} />
      <Cost
        items={items}
        locale={locale}
        // <Shortfall> shows a refusal for credits; the app itself shows any other error.
        start={(expectedCost) => void startJob({ items, expected_cost: expectedCost }).catch(() => {})}
      />
      <Shortfall locale={locale} />
      <Packs locale={locale} />
    </div>
  );
}
