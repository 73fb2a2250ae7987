-- Writes each account of which only credits moved, as update_accounts does, but without the columns
-- that no entry or hold changes, which are most of them.
UPDATE user_credits AS account
SET
    balance = moved.balance,
    held = moved.held,
    seq = moved.seq,
    last_updated = moved.last_updated,
    open_holds = moved.open_holds,
    next_hold_expiry = moved.next_hold_expiry,
    counted_at = moved.counted_at,
    spent_this_minute = moved.spent_this_minute,
    spent_this_hour = moved.spent_this_hour,
    spent_this_day = moved.spent_this_day,
    tx = moved.tx
FROM
    unnest(
        $1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::timestamptz[], $6::bigint[],
        $7::timestamptz[], $8::timestamptz[], $9::bigint[], $10::bigint[], $11::bigint[],
        $12::bigint[], $13::bigint[]
    ) AS moved (
        user_id, balance, held, seq, last_updated, open_holds, next_hold_expiry, counted_at,
        spent_this_minute, spent_this_hour, spent_this_day, tx, old_seq
    )
WHERE
    account.user_id = moved.user_id
    AND account.seq = moved.old_seq
    -- distributed: AND account.user_id = any($1::uuid[])
