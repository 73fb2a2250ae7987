-- Records payments as credited. A payment that another batch credits at the same time collides
-- here, and the later batch starts over and loads it.
INSERT INTO credit_purchases (
    payment_ref, user_id, seq, amount, amount_minor, currency, purchased_at
)
SELECT
    bought.payment_ref,
    bought.user_id,
    bought.seq,
    bought.amount,
    bought.amount_minor,
    bought.currency,
    bought.purchased_at
FROM
    unnest(
        $1::text[], $2::uuid[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[],
        $7::timestamptz[]
    ) AS bought (payment_ref, user_id, seq, amount, amount_minor, currency, purchased_at)
ORDER BY bought.payment_ref
ON CONFLICT DO NOTHING
RETURNING payment_ref
