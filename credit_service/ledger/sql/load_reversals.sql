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
FROM unnest($1::text[], $2::bigint[]) AS asked (reversal_ref, revision)
CROSS JOIN
    LATERAL ( -- noqa: ST05
        SELECT latest.revision
        FROM credit_reversals AS latest
        WHERE latest.reversal_ref = asked.reversal_ref
        ORDER BY latest.revision DESC
        LIMIT 1
    ) AS highest
INNER JOIN credit_reversals AS found
    ON
        asked.reversal_ref = found.reversal_ref
        AND found.revision IN (asked.revision, highest.revision)
