-- Events that are dead, or parked, after a place in the order of their user.
SELECT
    tx,
    user_id,
    kind,
    number,
    type,
    tries,
    problem,
    parked_at,
    next_try,
    dead_at
FROM credit_parked_events
WHERE
    endpoint = $1 AND (dead_at IS NOT NULL) = $2::bool
    AND (user_id, tx, kind, number) > ($4::uuid, $3::bigint, $5::bigint, $6::bigint)
ORDER BY user_id, tx, kind, number
LIMIT $7
