-- Lists entries of a user between two seqs, newest first. Without types: those that moved the
-- balance.
SELECT
    user_id,
    seq,
    type,
    call,
    amount,
    requested_amount,
    balance_change,
    held_change,
    balance_after,
    held_after,
    floor,
    description,
    timestamp,
    operation,
    quantity,
    unit_cost,
    price_version,
    reference,
    metadata,
    related_seq,
    idempotency_key,
    caller,
    payment_ref,
    payment_amount_minor,
    payment_currency,
    hold_seq
FROM credit_transactions
WHERE
    user_id = $1::uuid
    AND seq <= $2::bigint
    AND seq > $3::bigint
    AND CASE WHEN $4::text[] IS NULL THEN balance_change <> 0 ELSE type = ANY($4::text[]) END
    AND ($5::text IS NULL OR reference = $5::text)
    AND ($6::bigint IS NULL OR related_seq = $6::bigint)
ORDER BY seq DESC
LIMIT $7::bigint
