-- A moment, and a number in the feed: every transaction that took its time before that moment has
-- a lower number, because it had an id by then.
SELECT
    now() AS moment,
    numbers.base + pg_current_xact_id()::text::bigint AS tx
FROM credit_feed_numbers AS numbers
