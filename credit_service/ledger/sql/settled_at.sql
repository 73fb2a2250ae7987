-- Reads what was left when the last thing that was due by a time was settled, of what was recorded
-- right after a seq: the next batch first settles what is due, so no entry of a call comes between.
SELECT
    entry.seq,
    entry.balance_after,
    entry.held_after
FROM credit_transactions AS entry
LEFT JOIN credit_holds AS hold
    ON
        entry.user_id = hold.user_id
        AND entry.hold_seq = hold.seq
WHERE
    entry.user_id = $1::uuid
    AND entry.seq > $2::bigint
    AND entry.seq < coalesce(
        (
            SELECT later.seq
            FROM credit_transactions AS later
            WHERE
                later.user_id = $1::uuid
                AND later.seq > $2::bigint
                AND later.call NOT IN ('expiry', 'lapse', 'revocation')
            ORDER BY later.seq
            LIMIT 1
        ),
        9223372036854775807
    )
    AND coalesce(
        hold.expires_at,
        (
            SELECT max(change.lapsed_at)
            FROM credit_grant_changes AS change
            WHERE
                change.user_id = $1::uuid
                AND change.seq = entry.seq
        ),
        -- Credits of a revoked grant were taken when the hold before it ended.
        (
            SELECT ended.expires_at
            FROM credit_transactions AS earlier
            INNER JOIN credit_holds AS ended
                ON
                    earlier.user_id = ended.user_id
                    AND earlier.hold_seq = ended.seq
            WHERE
                earlier.user_id = $1::uuid
                AND earlier.seq < entry.seq
                AND earlier.call = 'expiry'
            ORDER BY earlier.seq DESC
            LIMIT 1
        )
    ) <= $3::timestamptz
ORDER BY entry.seq DESC
LIMIT 1
