"use client";

import type { QuoteItem } from "../../credits/credits.js";
import { useQuote } from "../../hooks/use-credits";

/** What the work costs, before it begins, and a button that begins it at that price. */
export function Cost({
  items,
  locale,
  start,
}: {
  items: readonly QuoteItem[];
  locale: string;
  start: (expectedCost: number) => void;
}) {
  const quote = useQuote(items);
  if (quote.state !== "known") {
    return <p aria-busy={quote.state === "asking"}>{quote.state === "failed" ? "Not available right now." : "–"}</p>;
  }
  const { total, affordable, shortfall } = quote.value;
  const number = new Intl.NumberFormat(locale);
  return (
    <div className="credits-cost">
      <p>
        This costs <strong>{number.format(total)}</strong> credits.
        {!affordable && ` You are ${number.format(shortfall)} short.`}
      </p>
      <button type="button" onClick={() => start(total)}>
        Start
      </button>
    </div>
  );
}
