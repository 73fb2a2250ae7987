-- Lists the payments that entries of these users name.
SELECT DISTINCT payment_ref
FROM credit_transactions
WHERE user_id = any($1::uuid[]) AND payment_ref IS NOT NULL
