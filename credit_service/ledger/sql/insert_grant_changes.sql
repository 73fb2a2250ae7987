-- Records changes of grants; step is the place of a change among those of its entry. The caller
-- asserts the count of rows.
INSERT INTO credit_grant_changes (
    user_id, seq, grant_seq, hold_seq, remaining_change, pinned_change, remaining_after,
    pinned_after, expire_after, lapsed_at, reversed_seq, step
)
SELECT
    made.user_id, -- distributed: account.user_id,
    made.seq,
    made.grant_seq,
    made.hold_seq,
    made.remaining_change,
    made.pinned_change,
    made.remaining_after,
    made.pinned_after,
    made.expire_after,
    made.lapsed_at,
    made.reversed_seq,
    made.step
FROM
    unnest(
        $1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
        $7::bigint[], $8::bigint[], $9::timestamptz[], $10::timestamptz[], $11::bigint[],
        $12::bigint[]
    ) AS made (
        user_id, seq, grant_seq, hold_seq, remaining_change, pinned_change, remaining_after,
        pinned_after, expire_after, lapsed_at, reversed_seq, step
    )
-- distributed: INNER JOIN user_credits AS account ON made.user_id = account.user_id
-- distributed: WHERE account.user_id = any($1::uuid[])
