-- Adds up what was to lapse next, by time, after a seq and a time. A grant was then as its last
-- change left it.
SELECT
    left_by.expire_after,
    sum(left_by.remaining_after - left_by.pinned_after)::bigint AS amount
FROM (
    SELECT DISTINCT ON (grant_seq)
        grant_seq,
        expire_after,
        remaining_after,
        pinned_after
    FROM credit_grant_changes
    WHERE user_id = $1::uuid AND seq <= $2::bigint
    ORDER BY grant_seq ASC, seq DESC, step DESC
) AS left_by
WHERE
    left_by.expire_after > $3::timestamptz
    AND left_by.remaining_after > left_by.pinned_after
GROUP BY left_by.expire_after
ORDER BY left_by.expire_after
LIMIT $4::bigint
