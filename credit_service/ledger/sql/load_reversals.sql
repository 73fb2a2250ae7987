-- Loads those of these revisions of refunds and disputes that are recorded, and the highest
-- revision of each of the refunds and disputes.
SELECT
    found.reversal_ref,
    found.revision,
    found.payment_ref,
    found.user_id,
    found.seq,
    found.reversed_minor,
    found.paid_minor,
    found.currency,
    found.reason,
    found.recorded_at,
    found.caller,
    found.opens_ref,
    found.counted
FROM credit_reversals AS found
WHERE
    found.reversal_ref = any($1::text[])
    AND (
        (found.reversal_ref, found.revision) IN (
            SELECT
                asked.reversal_ref,
                asked.revision
            FROM unnest($1::text[], $2::bigint[]) AS asked (reversal_ref, revision)
        )
        OR NOT EXISTS (
            SELECT 1
            FROM credit_reversals AS later
            WHERE
                later.reversal_ref = found.reversal_ref
                AND later.revision > found.revision
        )
    )
