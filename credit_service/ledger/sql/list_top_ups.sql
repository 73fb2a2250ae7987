-- Lists the requests for top-ups of a user, newest first, from a number down.
SELECT
    user_id,
    number,
    pack,
    state,
    payment_ref,
    tries,
    reason,
    link,
    created_at,
    changed_at,
    seq
FROM credit_top_ups
WHERE
    user_id = $1::uuid
    AND number <= $2::bigint
    AND (NOT $3::boolean OR state = 'open')
ORDER BY number DESC
LIMIT $4::bigint
