-- Reads what accounts had after a transaction; no row: they had no entry yet. Numbers never fall
-- along seq, so halving the range finds the last entry as in count_entries_before.
WITH RECURSIVE halving (user_id, tx, low, high) AS (
    SELECT
        asked.user_id,
        asked.tx,
        0::bigint AS low,
        account.seq AS high
    FROM unnest($1::uuid[], $2::bigint[]) AS asked (user_id, tx)
    INNER JOIN user_credits AS account ON asked.user_id = account.user_id
    UNION ALL
    SELECT
        halving.user_id,
        halving.tx,
        CASE WHEN middle.tx <= halving.tx THEN middle.seq ELSE halving.low END AS low,
        CASE WHEN middle.tx <= halving.tx THEN halving.high ELSE middle.seq - 1 END AS high
    FROM halving
    CROSS JOIN
        LATERAL (
            SELECT
                entry.seq,
                entry.tx
            FROM credit_transactions AS entry
            WHERE
                entry.user_id = halving.user_id
                AND entry.seq = (halving.low + halving.high + 1) / 2
            ORDER BY entry.seq
            LIMIT 1
        ) AS middle
    WHERE halving.low < halving.high
)

SELECT
    entry.user_id,
    entry.seq,
    entry.balance_after,
    entry.held_after
FROM halving
INNER JOIN credit_transactions AS entry
    ON
        halving.user_id = entry.user_id
        AND halving.low = entry.seq
WHERE halving.low = halving.high
