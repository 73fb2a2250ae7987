-- Adds entries to the ledger; the caller asserts the count of rows.
INSERT INTO credit_transactions (
    user_id, seq, type, call, amount, requested_amount, balance_change, held_change,
    balance_after, held_after, floor, description, timestamp, operation, quantity, unit_cost,
    price_version, reference, metadata, related_seq, idempotency_key, caller, payment_ref,
    payment_amount_minor, payment_currency, hold_seq, tx
)
SELECT
    posted.user_id, -- distributed: account.user_id,
    posted.seq,
    posted.type,
    posted.call,
    posted.amount,
    posted.requested_amount,
    posted.balance_change,
    posted.held_change,
    posted.balance_after,
    posted.held_after,
    posted.floor,
    posted.description,
    posted.timestamp,
    posted.operation,
    posted.quantity,
    posted.unit_cost,
    posted.price_version,
    posted.reference,
    posted.metadata::jsonb,
    posted.related_seq,
    posted.idempotency_key,
    posted.caller,
    posted.payment_ref,
    posted.payment_amount_minor,
    posted.payment_currency,
    posted.hold_seq,
    posted.tx
FROM
    unnest(
        $1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::bigint[],
        $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::text[],
        $13::timestamptz[], $14::text[], $15::bigint[], $16::bigint[], $17::text[],
        $18::text[], $19::text[], $20::bigint[], $21::text[], $22::text[], $23::text[],
        $24::bigint[], $25::text[], $26::bigint[], $27::bigint[]
    ) AS posted (
        user_id, seq, type, call, amount, requested_amount, balance_change, held_change,
        balance_after, held_after, floor, description, timestamp, operation, quantity, unit_cost,
        price_version, reference, metadata, related_seq, idempotency_key, caller, payment_ref,
        payment_amount_minor, payment_currency, hold_seq, tx
    )
-- distributed: INNER JOIN user_credits AS account ON posted.user_id = account.user_id
-- distributed: WHERE account.user_id = any($1::uuid[])
