-- Records revisions of refunds and disputes. A revision that another batch records at the same time
-- collides here, and so does the first one of a refund or dispute (opens_ref) with that of another
-- payment. The later batch starts over and loads it.
INSERT INTO credit_reversals (
    reversal_ref, revision, payment_ref, user_id, seq, reversed_minor, paid_minor, currency, reason,
    recorded_at, caller, opens_ref, counted
)
SELECT
    recorded.reversal_ref,
    recorded.revision,
    recorded.payment_ref,
    recorded.user_id,
    recorded.seq,
    recorded.reversed_minor,
    recorded.paid_minor,
    recorded.currency,
    recorded.reason,
    recorded.recorded_at,
    recorded.caller,
    recorded.opens_ref,
    recorded.counted
FROM
    unnest(
        $1::text[], $2::bigint[], $3::text[], $4::uuid[], $5::bigint[], $6::bigint[],
        $7::bigint[], $8::text[], $9::text[], $10::timestamptz[], $11::text[],
        $12::text[], $13::bigint[]
    ) AS recorded (
        reversal_ref, revision, payment_ref, user_id, seq, reversed_minor, paid_minor, currency,
        reason, recorded_at, caller, opens_ref, counted
    )
ORDER BY recorded.reversal_ref, recorded.revision
ON CONFLICT DO NOTHING
RETURNING reversal_ref
