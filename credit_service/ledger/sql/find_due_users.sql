-- Finds users with holds whose time has passed and is not recorded yet, the longest due first.
SELECT user_id
FROM credit_holds
WHERE
    state = 'held'
    AND expires_at <= clock_timestamp()
GROUP BY user_id
ORDER BY min(expires_at)
LIMIT $1::bigint
