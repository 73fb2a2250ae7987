-- Loads the time, the number of the transaction in the order of the feed, and the earlier entries
-- under a batch's keys: those that a call with the key made, and those with which a call with the
-- key was answered. A statement of its own, after the lock: one that waited for a lock sees other
-- rows as of before the wait. The time is read here for the same reason, and the number because an
-- earlier transaction of this connection may have been on another server. It is 0 for a pure read,
-- which needs no transaction id. At least one row comes back, with time and number alone if no key
-- is known.
WITH known AS (
    SELECT
        asked.key,
        null::text AS kept_call,
        made.user_id,
        made.seq
    FROM unnest($1::uuid[], $2::text[]) AS asked (user_id, key)
    INNER JOIN credit_transactions AS made
        ON
            asked.user_id = made.user_id
            AND asked.key = made.idempotency_key
    -- distributed: WHERE made.user_id = any($1::uuid[])
    UNION ALL
    SELECT
        asked.key,
        kept.call AS kept_call,
        kept.user_id,
        kept.seq
    FROM unnest($1::uuid[], $2::text[]) AS asked (user_id, key)
    INNER JOIN credit_kept_keys AS kept
        ON
            asked.user_id = kept.user_id
            AND asked.key = kept.key
-- distributed: WHERE kept.user_id = any($1::uuid[])
)

SELECT
    clock.now,
    clock.tx,
    known.key,
    known.kept_call,
    entry.user_id,
    entry.seq,
    entry.type,
    entry.call,
    entry.amount,
    entry.requested_amount,
    entry.balance_change,
    entry.held_change,
    entry.balance_after,
    entry.held_after,
    entry.floor,
    entry.description,
    entry.timestamp,
    entry.operation,
    entry.quantity,
    entry.unit_cost,
    entry.price_version,
    entry.reference,
    entry.metadata,
    entry.related_seq,
    entry.idempotency_key,
    entry.caller,
    entry.payment_ref,
    entry.payment_amount_minor,
    entry.payment_currency,
    entry.hold_seq
FROM (
    SELECT
        clock_timestamp() AS now,
        CASE
            WHEN $3::boolean THEN base + pg_current_xact_id()::text::bigint
            ELSE 0
        END AS tx
    FROM credit_feed_numbers
) AS clock
LEFT JOIN (
    known
    INNER JOIN credit_transactions AS entry
        ON
            known.user_id = entry.user_id
            AND known.seq = entry.seq
            -- distributed: AND entry.user_id = any($1::uuid[])
) ON true
