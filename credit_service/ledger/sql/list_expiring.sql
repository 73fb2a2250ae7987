-- Adds up what lapses next, by time: of the open grants, what no hold has set aside.
SELECT
    expire_time,
    sum(remaining - pinned)::bigint AS amount
FROM credit_grants
WHERE
    user_id = $1::uuid
    AND open
    AND expire_time > now()
    AND remaining > pinned
GROUP BY expire_time
ORDER BY expire_time
LIMIT $2::bigint
