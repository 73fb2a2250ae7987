-- Loads every revision of the reversals of these payments, and of these reversals.
SELECT
    reversal_ref,
    revision,
    payment_ref,
    user_id,
    seq,
    reversed_minor,
    paid_minor,
    currency,
    reason,
    recorded_at,
    caller
FROM credit_reversals
WHERE
    payment_ref = ANY($1::text[])
    OR reversal_ref = ANY($2::text[])
