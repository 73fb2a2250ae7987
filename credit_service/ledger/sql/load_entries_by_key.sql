-- Loads the time and the earlier entries under a batch's keys. A statement of its own, after the
-- lock: one that waited for a lock sees other rows as of before the wait. The time is read here for
-- the same reason; at least one row comes back, with the time alone when no key is known.
SELECT
    clock.now,
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
FROM (SELECT clock_timestamp() AS now) AS clock
LEFT JOIN (
    unnest($1::uuid[], $2::text[]) AS asked (user_id, idempotency_key)
    INNER JOIN credit_transactions AS entry
        ON
            asked.user_id = entry.user_id
            AND asked.idempotency_key = entry.idempotency_key
) ON true
