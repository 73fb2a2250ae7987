-- Counts a user's entries before a time, which is the seq of the last of them. Times never fall
-- along seq, so halving the range finds it in some twenty steps without an index of times. The
-- LIMIT makes each step a look-up; joined, a planner that knows of many users with few entries each
-- reads all entries of the user in every step.
WITH RECURSIVE halving (low, high) AS (
    SELECT
        0::bigint AS low,
        account.seq AS high
    FROM user_credits AS account
    WHERE account.user_id = $1::uuid
    UNION ALL
    SELECT
        CASE WHEN middle.timestamp < $2::timestamptz THEN middle.seq ELSE halving.low END AS low,
        CASE WHEN middle.timestamp < $2::timestamptz THEN halving.high ELSE middle.seq - 1 END
            AS high
    FROM halving
    CROSS JOIN
        LATERAL (
            SELECT
                entry.seq,
                entry.timestamp
            FROM credit_transactions AS entry
            WHERE
                entry.user_id = $1::uuid
                AND entry.seq = (halving.low + halving.high + 1) / 2
            ORDER BY entry.seq
            LIMIT 1
        ) AS middle
    WHERE halving.low < halving.high
)

SELECT low AS entries FROM halving
WHERE low = high
