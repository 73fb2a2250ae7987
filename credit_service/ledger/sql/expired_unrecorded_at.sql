-- Sums what was still recorded as held at a seq and a time, though its own time had passed. Such a
-- hold is still open, or was ended right after that seq: the next batch first ends what is due, so
-- no entry of another type comes between.
SELECT coalesce(sum(unrecorded.amount), 0)::bigint AS amount
FROM (
    SELECT hold.amount
    FROM credit_holds AS hold
    WHERE
        hold.user_id = $1::uuid
        AND hold.seq <= $2::bigint
        AND hold.expires_at <= $3::timestamptz
        AND hold.state = 'held'
    UNION ALL
    SELECT hold.amount
    FROM credit_transactions AS entry
    INNER JOIN credit_holds AS hold
        ON
            entry.user_id = hold.user_id
            AND entry.hold_seq = hold.seq
    WHERE
        entry.user_id = $1::uuid
        AND entry.type = 'expire'
        AND entry.seq > $2::bigint
        AND entry.seq < coalesce(
            (
                SELECT later.seq
                FROM credit_transactions AS later
                WHERE
                    later.user_id = $1::uuid
                    AND later.seq > $2::bigint
                    AND later.type <> 'expire'
                ORDER BY later.seq
                LIMIT 1
            ),
            9223372036854775807
        )
        AND hold.seq <= $2::bigint
        AND hold.expires_at <= $3::timestamptz
) AS unrecorded
