-- Writes grants that were made or changed, once per grant and batch, as the batch leaves them.
INSERT INTO credit_grants AS granted (
    user_id, seq, amount, remaining, pinned, priority, expire_time, asked_time, valid_for_us,
    paid, series, revoked, open, lapsed, counted, reversed
)
SELECT
    put.user_id, -- distributed: account.user_id,
    put.seq,
    put.amount,
    put.remaining,
    put.pinned,
    put.priority,
    put.expire_time,
    put.asked_time,
    put.valid_for_us,
    put.paid,
    put.series,
    put.revoked,
    put.open,
    put.lapsed,
    put.counted,
    put.reversed
FROM
    unnest(
        $1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
        $7::timestamptz[], $8::timestamptz[], $9::bigint[], $10::boolean[], $11::text[],
        $12::boolean[], $13::boolean[], $14::bigint[], $15::bigint[], $16::bigint[]
    ) AS put (
        user_id, seq, amount, remaining, pinned, priority, expire_time, asked_time, valid_for_us,
        paid, series, revoked, open, lapsed, counted, reversed
    )
-- distributed: INNER JOIN user_credits AS account ON put.user_id = account.user_id
-- distributed: WHERE account.user_id = any($1::uuid[])
ON CONFLICT (user_id, seq) DO UPDATE SET
    remaining = excluded.remaining,
    pinned = excluded.pinned,
    expire_time = excluded.expire_time,
    revoked = excluded.revoked,
    open = excluded.open,
    lapsed = excluded.lapsed,
    counted = excluded.counted,
    reversed = excluded.reversed
