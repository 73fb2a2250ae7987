"use client";

import { useCredits, usePacks } from "../../hooks/use-credits";
import { Packs } from "./packs";

/** A refusal explained, with the smallest pack that covers it; hidden once the balance does. */
export function Shortfall({ locale }: { locale: string }) {
  const { refusal } = useCredits();
  const packs = usePacks();
  const shortfall = refusal?.shortfall;
  if (!shortfall) {
    return null;
  }
  const sizes = packs.state === "known" ? packs.value.map((pack) => pack.credits) : [];
  const covering = Math.min(...sizes.filter((credits) => credits >= shortfall));
  const offered = Number.isFinite(covering) ? covering : Math.max(...sizes);
  return (
    <section className="credits-shortfall" role="alert">
      <p>You need {new Intl.NumberFormat(locale).format(shortfall)} more credits.</p>
      <Packs locale={locale} only={(pack) => pack.credits === offered} />
    </section>
  );
}
