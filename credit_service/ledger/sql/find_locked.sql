-- Finds the accounts whose rows another transaction has locked at this moment.
WITH unlocked AS (
    SELECT user_id
    FROM user_credits
    WHERE user_id = ANY($1::uuid[])
    FOR NO KEY UPDATE SKIP LOCKED
)

SELECT user_id
FROM user_credits
WHERE
    user_id = ANY($1::uuid[])
    AND user_id NOT IN (SELECT unlocked.user_id FROM unlocked)
