-- Reads the next open grants that expire within some days, in the order of their times, and whether
-- this expiry is to be announced. An allowance that is given for no longer than these days is not:
-- it would be announced whenever it is given. Each LIMIT makes a look-up of a join that may
-- otherwise read all entries of a user.
SELECT
    due.user_id,
    due.seq,
    due.expire_time,
    due.remaining,
    due.pinned,
    announced.seq IS NULL
    AND NOT (
        entry.call = 'allowance'
        AND due.expire_time <= entry.timestamp + $1::bigint * interval '1 day'
    ) AS is_news
FROM (
    SELECT
        granted.user_id,
        granted.seq,
        granted.expire_time,
        granted.remaining,
        granted.pinned
    FROM credit_grants AS granted
    WHERE
        granted.open
        AND (granted.expire_time, granted.user_id, granted.seq)
        > ($2::timestamptz, $3::uuid, $4::bigint)
        AND granted.expire_time > (SELECT clock_timestamp())
        AND granted.expire_time <= (SELECT clock_timestamp() + $1::bigint * interval '1 day')
    ORDER BY granted.expire_time, granted.user_id, granted.seq
    LIMIT $5::bigint
) AS due
CROSS JOIN
    LATERAL (
        SELECT
            made.call,
            made.timestamp
        FROM credit_transactions AS made
        WHERE
            made.user_id = due.user_id
            AND made.seq = due.seq
        ORDER BY made.seq
        LIMIT 1
    ) AS entry
LEFT JOIN
    LATERAL (
        SELECT earlier.seq
        FROM credit_expiring_alerts AS earlier
        WHERE
            earlier.user_id = due.user_id
            AND earlier.seq = due.seq
            AND earlier.expire_time = due.expire_time
        ORDER BY earlier.seq
        LIMIT 1
    ) AS announced
    ON TRUE
ORDER BY due.expire_time, due.user_id, due.seq
