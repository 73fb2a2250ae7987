-- Measures how far the feed is behind the ledger: how many entries cannot be read yet, of which it
-- counts a bounded number, and for how many seconds the first of them has been waiting.
WITH numbers AS MATERIALIZED (
    SELECT
        passed,
        CASE
            WHEN passed = 0 THEN base + pg_snapshot_xmin(pg_current_snapshot())::text::bigint
            ELSE feed_offset + leap
        END AS boundary
    FROM credit_feed_numbers
),

waiting AS (
    SELECT timestamp
    FROM credit_transactions
    WHERE tx >= (SELECT numbers.boundary FROM numbers)
    ORDER BY tx, user_id, seq
    LIMIT $1::bigint
)

SELECT
    numbers.passed,
    count(waiting.timestamp) AS entries,
    coalesce(extract(EPOCH FROM clock_timestamp() - min(waiting.timestamp)), 0)::float8 AS seconds
FROM numbers
LEFT JOIN waiting ON true
GROUP BY numbers.passed
