-- Loads the purchases of these payments, over all users.
SELECT
    payment_ref,
    user_id,
    seq,
    amount
FROM credit_purchases
WHERE payment_ref = ANY($1::text[])
