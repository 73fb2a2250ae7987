-- Adds up, for each of these payments, what its refunds and disputes returned by their highest
-- revisions.
SELECT
    counting.payment_ref,
    sum(counting.reversed_minor)::bigint AS reversed_minor,
    min(counting.paid_minor) AS paid_minor,
    min(counting.currency) AS currency
FROM (
    SELECT DISTINCT ON (payment_ref, reversal_ref)
        payment_ref,
        reversed_minor,
        paid_minor,
        currency
    FROM credit_reversals
    WHERE payment_ref = any($1::text[])
    ORDER BY payment_ref ASC, reversal_ref ASC, revision DESC
) AS counting
GROUP BY counting.payment_ref
