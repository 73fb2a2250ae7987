-- Adds up what all grants had at a time, by the month of UTC in which it lapses; null for what
-- never does. Of a grant whose time had passed only what holds had set aside was left, recorded or
-- not; it is of the month of the report. A grant was then as its last change up to that time left
-- it.
SELECT
    CASE
        WHEN dated.expire_time IS NOT NULL
            THEN to_char(
                (greatest(dated.expire_time, $1::timestamptz) - interval '1 microsecond')
                AT TIME ZONE 'UTC',
                'YYYY-MM'
            )
    END AS month,
    coalesce(sum(dated.credits) FILTER (WHERE dated.paid), 0)::bigint AS paid,
    coalesce(sum(dated.credits) FILTER (WHERE NOT dated.paid), 0)::bigint AS promotional
FROM (
    SELECT
        state.paid,
        state.expire_time,
        CASE
            WHEN state.expire_time <= $1::timestamptz THEN state.pinned
            ELSE state.remaining
        END AS credits
    FROM (
        SELECT
            present.paid,
            present.expire_time,
            present.remaining,
            present.pinned
        FROM credit_grants AS present
        INNER JOIN user_credits AS account ON present.user_id = account.user_id
        WHERE account.last_updated <= $1::timestamptz AND present.remaining > 0
        UNION ALL
        SELECT
            left_by.paid,
            left_by.expire_after AS expire_time,
            left_by.remaining_after AS remaining,
            left_by.pinned_after AS pinned
        FROM user_credits AS account
        INNER JOIN LATERAL (
            SELECT newest.seq
            FROM credit_transactions AS newest
            WHERE
                newest.user_id = account.user_id
                AND newest.timestamp <= $1::timestamptz
            ORDER BY newest.seq DESC
            LIMIT 1
        ) AS entry ON TRUE
        INNER JOIN LATERAL (
            SELECT DISTINCT ON (change.grant_seq)
                made.paid,
                change.expire_after,
                change.remaining_after,
                change.pinned_after
            FROM credit_grant_changes AS change
            INNER JOIN credit_grants AS made
                ON change.user_id = made.user_id AND change.grant_seq = made.seq
            WHERE change.user_id = account.user_id AND change.seq <= entry.seq
            ORDER BY change.grant_seq ASC, change.seq DESC, change.step DESC
        ) AS left_by ON TRUE
        WHERE account.last_updated > $1::timestamptz AND account.grants_made > 0
    ) AS state
) AS dated
WHERE dated.credits > 0
GROUP BY month
ORDER BY month ASC NULLS LAST
