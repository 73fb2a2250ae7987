-- Lists the open requests for top-ups of all accounts, in the order of their users, from one on.
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
WHERE state = 'open' AND user_id >= $1::uuid
ORDER BY user_id
LIMIT $2::bigint
