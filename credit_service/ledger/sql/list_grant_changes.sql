-- Reads what entries of a user changed in grants, entry by entry, in the order of the changes: so
-- many of each, because an entry may change all grants of an account.
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
WHERE user_id = $1::uuid AND seq = any($2::bigint[]) AND step <= $3::bigint
ORDER BY seq, step
