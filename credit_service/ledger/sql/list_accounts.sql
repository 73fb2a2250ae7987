-- Lists accounts in the order of their users, from one of them on.
SELECT user_id
FROM user_credits
WHERE user_id >= $1::uuid
ORDER BY user_id
LIMIT $2::bigint
