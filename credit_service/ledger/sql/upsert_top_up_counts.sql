-- Writes the counts that decide whether accounts may ask for a top-up.
INSERT INTO credit_top_up_counts (user_id, requests, failures, off, month, charges)
SELECT
    changed.user_id, -- distributed: account.user_id,
    changed.requests,
    changed.failures,
    changed.off,
    changed.month,
    changed.charges
FROM
    unnest(
        $1::uuid[], $2::bigint[], $3::bigint[], $4::text[], $5::timestamptz[], $6::bigint[]
    ) AS changed (user_id, requests, failures, off, month, charges)
-- distributed: INNER JOIN user_credits AS account ON changed.user_id = account.user_id
-- distributed: WHERE account.user_id = any($1::uuid[])
ON CONFLICT (user_id) DO UPDATE SET
    requests = excluded.requests,
    failures = excluded.failures,
    off = excluded.off,
    month = excluded.month,
    charges = excluded.charges
