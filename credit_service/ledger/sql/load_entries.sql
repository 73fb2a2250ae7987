-- Loads entries by user and seq.
SELECT
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
FROM unnest($1::uuid[], $2::bigint[]) AS asked (user_id, seq)
INNER JOIN credit_transactions AS entry
    ON
        asked.user_id = entry.user_id
        AND asked.seq = entry.seq
-- distributed: WHERE entry.user_id = any($1::uuid[])
