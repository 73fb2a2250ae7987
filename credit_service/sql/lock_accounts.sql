-- Locks the accounts of a batch, in the order of their users so that no two batches wait for each
-- other in a circle. NO KEY: entries of the same user may be inserted against it.
SELECT
    user_id,
    balance,
    held,
    seq,
    last_updated
FROM user_credits
WHERE user_id = ANY($1::uuid[])
ORDER BY user_id
FOR NO KEY UPDATE
