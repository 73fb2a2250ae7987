-- Writes holds that were made or changed, once per hold and batch, as the batch leaves them.
INSERT INTO credit_holds AS hold (
    user_id, seq, state, amount, captured, created_at, expires_at, operation, quantity,
    unit_cost, price_version, reference, settled_seq, captured_seq
)
SELECT
    put.user_id, -- distributed: account.user_id,
    put.seq,
    put.state,
    put.amount,
    put.captured,
    put.created_at,
    put.expires_at,
    put.operation,
    put.quantity,
    put.unit_cost,
    put.price_version,
    put.reference,
    put.settled_seq,
    put.captured_seq
FROM
    unnest(
        $1::uuid[], $2::bigint[], $3::text[], $4::bigint[], $5::bigint[], $6::timestamptz[],
        $7::timestamptz[], $8::text[], $9::bigint[], $10::bigint[], $11::text[], $12::text[],
        $13::bigint[], $14::bigint[]
    ) AS put (
        user_id, seq, state, amount, captured, created_at, expires_at, operation, quantity,
        unit_cost, price_version, reference, settled_seq, captured_seq
    )
-- distributed: INNER JOIN user_credits AS account ON put.user_id = account.user_id
-- distributed: WHERE account.user_id = any($1::uuid[])
ON CONFLICT (user_id, seq) DO UPDATE SET
    state = excluded.state,
    captured = excluded.captured,
    expires_at = excluded.expires_at,
    settled_seq = excluded.settled_seq,
    captured_seq = excluded.captured_seq
