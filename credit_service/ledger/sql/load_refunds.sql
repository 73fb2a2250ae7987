-- Loads how much was given back of these spends.
SELECT
    refund.user_id,
    refund.spend_seq,
    refund.refunded
FROM unnest($1::uuid[], $2::bigint[]) AS asked (user_id, spend_seq)
INNER JOIN credit_refunds AS refund
    ON
        asked.user_id = refund.user_id
        AND asked.spend_seq = refund.spend_seq
-- distributed: WHERE refund.user_id = any($1::uuid[])
