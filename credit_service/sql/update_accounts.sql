-- Writes each account once, as the batch leaves it. The lock is the optimisation, the guard on seq
-- is the safety: the caller asserts the count of rows.
UPDATE user_credits AS account
SET
    balance = changed.balance,
    held = changed.held,
    seq = changed.seq,
    last_updated = changed.last_updated
FROM
    unnest(
        $1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::timestamptz[], $6::bigint[]
    ) AS changed (user_id, balance, held, seq, last_updated, old_seq)
WHERE
    account.user_id = changed.user_id
    AND account.seq = changed.old_seq
