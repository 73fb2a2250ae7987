-- Adds up what a user spent, got back and held between two seqs, per day of UTC and operation.
SELECT
    to_char(timestamp AT TIME ZONE 'UTC', 'YYYY-MM-DD') AS day,
    coalesce(operation, '') AS operation,
    sum(amount) FILTER (WHERE type IN ('spend', 'capture')) AS spent,
    sum(amount) FILTER (WHERE type = 'refund') AS refunded,
    sum(amount) FILTER (WHERE type = 'hold') AS held,
    count(*) FILTER (WHERE type IN ('spend', 'capture')) AS spend_count,
    count(*) FILTER (WHERE type = 'refund') AS refund_count,
    count(*) FILTER (WHERE type = 'hold') AS hold_count
FROM credit_transactions
WHERE
    user_id = $1::uuid
    AND seq > $2::bigint
    AND seq <= $3::bigint
    AND type IN ('spend', 'capture', 'refund', 'hold')
GROUP BY 1, 2
ORDER BY 1, 2
