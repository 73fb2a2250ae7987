-- Reads what entries of a user changed in grants, entry by entry, in the order of the changes.
SELECT
    user_id,
    seq,
    grant_seq,
    hold_seq,
    remaining_change,
    pinned_change,
    remaining_after,
    pinned_after,
    expire_after,
    lapsed_at
FROM credit_grant_changes
WHERE user_id = $1::uuid AND seq = any($2::bigint[])
ORDER BY seq, step
