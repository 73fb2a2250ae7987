-- Finds the grants whose time has passed or soon will. The order is complete, so that a page of it
-- is one range even if a million grants expire at the same instant. It is built as those of the
-- feed.
DROP INDEX CONCURRENTLY IF EXISTS grants_due_in_order;

CREATE INDEX CONCURRENTLY grants_due_in_order
ON credit_grants (expire_time, user_id, seq) WHERE open;

DROP INDEX CONCURRENTLY IF EXISTS grants_due;
