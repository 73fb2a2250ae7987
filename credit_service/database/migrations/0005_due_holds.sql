-- Finds the holds that are due, however many are open. The one index besides those of purchases and
-- reversals that does not begin with the user: only the sweeper uses it, and it looks for users.
CREATE INDEX open_holds_by_expiry ON credit_holds (expires_at) WHERE state = 'held';
