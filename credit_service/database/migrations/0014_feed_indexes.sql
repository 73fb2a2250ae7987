-- The order of the feed. Indexes that do not begin with the user, because the feed is of all users.
-- Each statement runs outside a transaction, so that writers go on while an index is built. What a
-- run that was killed has left is not usable, so it is dropped first.
DROP INDEX CONCURRENTLY IF EXISTS entries_by_tx;

CREATE INDEX CONCURRENTLY entries_by_tx ON credit_transactions (tx, user_id, seq);

DROP INDEX CONCURRENTLY IF EXISTS policy_changes_by_tx;

CREATE INDEX CONCURRENTLY policy_changes_by_tx ON credit_policy_changes (tx, user_id, change);
