-- Writes how much was given back of each spend, once per spend and batch.
INSERT INTO credit_refunds AS refund (user_id, spend_seq, spent, refunded)
SELECT
    given.user_id, -- distributed: account.user_id,
    given.spend_seq,
    given.spent,
    given.refunded
FROM
    unnest(
        $1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[]
    ) AS given (user_id, spend_seq, spent, refunded)
-- distributed: INNER JOIN user_credits AS account ON given.user_id = account.user_id
-- distributed: WHERE account.user_id = any($1::uuid[])
ON CONFLICT (user_id, spend_seq) DO UPDATE SET refunded = excluded.refunded
