-- Loads all that is recorded of the refunds and disputes of these payments, also where it names
-- another payment.
SELECT
    found.reversal_ref,
    found.revision,
    found.payment_ref,
    found.reversed_minor,
    found.paid_minor,
    found.counted
FROM credit_reversals AS found
WHERE found.reversal_ref IN (
    SELECT named.reversal_ref
    FROM credit_reversals AS named
    WHERE named.payment_ref = any($1::text[])
)
