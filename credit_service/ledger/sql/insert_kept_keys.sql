-- Records the keys of calls that were answered with the entry of another call; the caller asserts
-- the count of rows.
INSERT INTO credit_kept_keys (
    user_id, key, seq, call
)
SELECT
    kept.user_id, -- distributed: account.user_id,
    kept.key,
    kept.seq,
    kept.call
FROM
    unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[]) AS kept (user_id, key, seq, call)
-- distributed: INNER JOIN user_credits AS account ON kept.user_id = account.user_id
-- distributed: WHERE account.user_id = any($1::uuid[])
