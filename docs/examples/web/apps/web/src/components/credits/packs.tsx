"use client";

import { duration, money, type Pack } from "../../credits/credits.js";
import { usePacks, usePurchase } from "../../hooks/use-credits";

/** The packs on sale; a click leads to the checkout, once. */
export function Packs({ locale, only }: { locale: string; only?: (pack: Pack) => boolean }) {
  const packs = usePacks();
  const { busy, failed, buy } = usePurchase();
  if (packs.state !== "known") {
    return <p aria-busy={packs.state === "asking"}>{packs.state === "failed" ? "Not available right now." : "–"}</p>;
  }
  return (
    <>
      <ul className="credits-packs">
        {packs.value.filter(only ?? (() => true)).map((pack) => (
          <li key={pack.id}>
            {pack.name}: {new Intl.NumberFormat(locale).format(pack.credits)} credits
            {pack.valid_for_seconds !== null && `, valid for ${duration(pack.valid_for_seconds, locale)}`}{" "}
            <button type="button" aria-disabled={busy} onClick={() => buy(pack.id)}>
              {busy ? "Opening checkout…" : `Buy for ${money(pack.amount_minor, pack.currency, locale)}`}
            </button>
          </li>
        ))}
      </ul>
      {failed && <p role="alert">The checkout could not be opened. You have not been charged.</p>}
    </>
  );
}
