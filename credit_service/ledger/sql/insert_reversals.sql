-- Records revisions of refunds and disputes. One that another batch records at the same time
-- collides here, and the later batch starts over and recalls it.
INSERT INTO credit_reversals (
    reversal_ref, revision, payment_ref, user_id, seq, reversed_minor, paid_minor, currency, reason,
    recorded_at, caller
)
SELECT
    told.reversal_ref,
    told.revision,
    told.payment_ref,
    told.user_id,
    told.seq,
    told.reversed_minor,
    told.paid_minor,
    told.currency,
    told.reason,
    told.recorded_at,
    told.caller
FROM
    unnest(
        $1::text[], $2::bigint[], $3::text[], $4::uuid[], $5::bigint[], $6::bigint[],
        $7::bigint[], $8::text[], $9::text[], $10::timestamptz[], $11::text[]
    ) AS told (
        reversal_ref, revision, payment_ref, user_id, seq, reversed_minor, paid_minor, currency,
        reason, recorded_at, caller
    )
ORDER BY told.reversal_ref, told.revision
