-- Opens accounts with their first entries. Two batches that open the same account at once collide
-- here, and the later one starts over with the row to lock.
INSERT INTO user_credits (user_id, balance, held, seq, last_updated)
SELECT
    opened.user_id,
    opened.balance,
    opened.held,
    opened.seq,
    opened.last_updated
FROM
    unnest(
        $1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::timestamptz[]
    ) AS opened (user_id, balance, held, seq, last_updated)
ORDER BY opened.user_id
