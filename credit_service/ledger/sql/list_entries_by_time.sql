-- Lists the entries of all users after a place in the order of time, users and seqs, and before a
-- time. The text of an adopted entry is cut, as it is in answers.
SELECT
    page.user_id,
    page.seq,
    page.type,
    page.call,
    page.amount,
    page.requested_amount,
    page.balance_change,
    page.held_change,
    page.balance_after,
    page.held_after,
    page.floor,
    page.description,
    page.timestamp,
    page.operation,
    page.quantity,
    page.unit_cost,
    page.price_version,
    page.reference,
    page.metadata,
    page.related_seq,
    page.idempotency_key,
    page.caller,
    page.payment_ref,
    page.payment_amount_minor,
    page.payment_currency,
    page.hold_seq
FROM (
    SELECT
        listed.user_id,
        listed.seq,
        listed.type,
        listed.call,
        listed.amount,
        listed.requested_amount,
        listed.balance_change,
        listed.held_change,
        listed.balance_after,
        listed.held_after,
        listed.floor,
        listed.timestamp,
        listed.operation,
        listed.quantity,
        listed.unit_cost,
        listed.price_version,
        listed.reference,
        listed.metadata,
        listed.related_seq,
        listed.idempotency_key,
        listed.caller,
        listed.payment_ref,
        listed.payment_amount_minor,
        listed.payment_currency,
        listed.hold_seq,
        left(listed.description, 10000) AS description
    FROM credit_transactions AS listed
    WHERE
        listed.timestamp >= $1::timestamptz
        AND listed.timestamp < $4::timestamptz
        AND (listed.timestamp, listed.user_id, listed.seq)
        > ($1::timestamptz, $2::uuid, $3::bigint)
    ORDER BY listed.timestamp, listed.user_id, listed.seq
    LIMIT $5::bigint
) AS page
ORDER BY page.timestamp, page.user_id, page.seq
