-- Adds up what all users spent, got back and held, per day of UTC and operation.
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
    timestamp >= $1::timestamptz
    AND timestamp < $2::timestamptz
    AND type IN ('spend', 'capture', 'refund', 'hold')
GROUP BY 1, 2
ORDER BY 1, 2
