"use client";

import { useCredits } from "../../hooks/use-credits";

/** The credits that can be spent now, and below them low, held and owed credits and the time. */
export function Balance({ locale }: { locale: string }) {
  const { account, status, asOf, low } = useCredits();
  const number = new Intl.NumberFormat(locale);
  if (!account) {
    return (
      <p className="credits-balance" aria-busy={status === "loading"}>
        {status === "signed-out" ? "Sign in to see your credits." : "–"}
      </p>
    );
  }
  return (
    <div className="credits-balance" role="status">
      <strong>{number.format(account.spendable)}</strong> credits
      {low && (
        <p className="credits-low">
          {account.spendable > 0 ? "You are running low on credits." : "No credits are left."}
        </p>
      )}
      {account.held > 0 && <p>{number.format(account.held)} held for running jobs</p>}
      {account.balance < 0 && <p>{number.format(-account.balance)} credits owed</p>}
      {account.frozen && <p>This account is frozen. Please contact support.</p>}
      {asOf && <p>as of {asOf.toLocaleTimeString(locale, { timeStyle: "short" })}</p>}
    </div>
  );
}
