-- Loads all open holds of these users.
SELECT
    user_id,
    seq,
    state,
    amount,
    captured,
    created_at,
    expires_at,
    operation,
    quantity,
    unit_cost,
    price_version,
    reference,
    settled_seq,
    captured_seq
FROM credit_holds
WHERE
    user_id = ANY($1::uuid[])
    AND state = 'held'
