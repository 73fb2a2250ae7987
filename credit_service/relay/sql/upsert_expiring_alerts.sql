-- Remembers which expiry of which grant was announced. A user may have been deleted meanwhile.
INSERT INTO credit_expiring_alerts (user_id, seq, expire_time)
SELECT
    made.user_id,
    made.seq,
    made.expire_time
FROM unnest($1::uuid[], $2::bigint[], $3::timestamptz[]) AS made (user_id, seq, expire_time)
INNER JOIN credit_grants AS granted
    ON
        made.user_id = granted.user_id
        AND made.seq = granted.seq
ON CONFLICT (user_id, seq) DO UPDATE SET expire_time = excluded.expire_time
