-- Adds up what all accounts had at a time: the grants by the month of UTC in which they lapse, null
-- for those that never do, and in a last row the pools: the credits of those not in debt, and what
-- the others owe. What was due by then counts as settled, recorded or not.
--
-- An account was then as its last entry up to that time left it, and after that what was due and
-- recorded right behind it; see settled_at. If nothing else was recorded since, it is as it is now,
-- less what is due and not recorded yet; see settled_accounts. Of a grant whose time had passed
-- only what holds had set aside was left; it is of the month of the report.
-- On a distributed book each CTE becomes a part of the statements that the nodes run for their own
-- accounts, instead of a table that all nodes send each other.
WITH then_at AS ( -- distributed: WITH then_at AS NOT MATERIALIZED (
    SELECT
        account.user_id,
        coalesce(due.seq, entry.seq) AS seq,
        coalesce(due.balance_after, entry.balance_after) AS balance
    FROM user_credits AS account
    INNER JOIN LATERAL (
        SELECT
            newest.seq,
            newest.balance_after
        FROM credit_transactions AS newest
        WHERE
            newest.user_id = account.user_id
            AND newest.timestamp <= $1::timestamptz
        ORDER BY newest.seq DESC
        LIMIT 1
    ) AS entry ON TRUE
    LEFT JOIN LATERAL (
        SELECT
            recorded.seq,
            recorded.balance_after
        FROM credit_transactions AS recorded
        LEFT JOIN credit_holds AS hold
            ON
                recorded.user_id = hold.user_id
                AND recorded.hold_seq = hold.seq
        WHERE
            recorded.user_id = account.user_id
            AND recorded.seq > entry.seq
            AND recorded.seq < coalesce(
                (
                    SELECT later.seq
                    FROM credit_transactions AS later
                    WHERE
                        later.user_id = account.user_id
                        AND later.seq > entry.seq
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
                        change.user_id = recorded.user_id
                        AND change.seq = recorded.seq
                ),
                (
                    SELECT before.expires_at
                    FROM credit_transactions AS earlier
                    INNER JOIN credit_holds AS before
                        ON
                            earlier.user_id = before.user_id
                            AND earlier.hold_seq = before.seq
                    WHERE
                        earlier.user_id = recorded.user_id
                        AND earlier.seq < recorded.seq
                        AND earlier.call = 'expiry'
                    ORDER BY earlier.seq DESC
                    LIMIT 1
                )
            ) <= $1::timestamptz
        ORDER BY recorded.seq DESC
        LIMIT 1
    ) AS due ON account.grants_made > 0
    WHERE account.last_updated > $1::timestamptz
),

given_up AS ( -- distributed: given_up AS NOT MATERIALIZED (
    SELECT
        pin.user_id,
        pin.grant_seq,
        pin.credits,
        account.in_grants - account.balance AS debt,
        coalesce(
            sum(pin.credits) OVER (
                PARTITION BY pin.user_id
                ORDER BY
                    pin.expires_at,
                    pin.hold_seq,
                    granted.priority,
                    granted.expire_time,
                    granted.paid,
                    granted.seq
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ),
            0
        ) AS earlier
    FROM (
        SELECT
            hold.user_id,
            hold.seq AS hold_seq,
            hold.expires_at,
            change.grant_seq,
            sum(change.pinned_change) AS credits
        FROM credit_holds AS hold
        INNER JOIN credit_grant_changes AS change
            ON
                hold.user_id = change.user_id
                AND hold.seq = change.hold_seq
        WHERE
            hold.state = 'held'
            AND hold.expires_at <= $1::timestamptz
        GROUP BY hold.user_id, hold.seq, hold.expires_at, change.grant_seq
        HAVING sum(change.pinned_change) > 0
    ) AS pin
    INNER JOIN credit_grants AS granted
        ON
            pin.user_id = granted.user_id
            AND pin.grant_seq = granted.seq
    INNER JOIN user_credits AS account ON pin.user_id = account.user_id
),

unpinned AS ( -- distributed: unpinned AS NOT MATERIALIZED (
    SELECT
        user_id,
        grant_seq,
        sum(credits) AS credits,
        sum(greatest(0, least(credits, debt - earlier))) AS repaid
    FROM given_up
    GROUP BY user_id, grant_seq
),

dated AS ( -- distributed: dated AS NOT MATERIALIZED (
    SELECT
        granted.user_id,
        granted.paid,
        granted.expire_time,
        CASE
            WHEN granted.open AND coalesce(granted.expire_time > $1::timestamptz, TRUE)
                THEN granted.remaining - coalesce(unpinned.repaid, 0)
            ELSE granted.pinned - coalesce(unpinned.credits, 0)
        END AS credits
    FROM credit_grants AS granted
    INNER JOIN user_credits AS account ON granted.user_id = account.user_id
    LEFT JOIN then_at ON granted.user_id = then_at.user_id
    LEFT JOIN unpinned
        ON
            granted.user_id = unpinned.user_id
            AND granted.seq = unpinned.grant_seq
    WHERE
        granted.remaining > 0
        AND (account.last_updated <= $1::timestamptz OR then_at.seq = account.seq)
    UNION ALL
    SELECT
        then_at.user_id,
        left_by.paid,
        left_by.expire_after AS expire_time,
        CASE
            WHEN left_by.expire_after <= $1::timestamptz THEN left_by.pinned_after
            ELSE left_by.remaining_after
        END AS credits
    FROM then_at
    INNER JOIN user_credits AS account ON then_at.user_id = account.user_id
    CROSS JOIN
        LATERAL ( -- noqa: ST05
            SELECT DISTINCT ON (change.grant_seq)
                made.paid,
                change.expire_after,
                change.remaining_after,
                change.pinned_after
            FROM credit_grant_changes AS change
            INNER JOIN credit_grants AS made
                ON
                    change.user_id = made.user_id
                    AND change.grant_seq = made.seq
            WHERE
                change.user_id = then_at.user_id
                AND change.seq <= then_at.seq
            ORDER BY change.grant_seq ASC, change.seq DESC, change.step DESC
        ) AS left_by
    WHERE
        then_at.seq < account.seq
        AND account.grants_made > 0
),

repaid AS ( -- distributed: repaid AS NOT MATERIALIZED (
    SELECT
        user_id,
        sum(repaid) AS credits
    FROM unpinned
    GROUP BY user_id
),

pools AS ( -- distributed: pools AS NOT MATERIALIZED (
    SELECT
        CASE
            WHEN then_at.seq < account.seq
                THEN then_at.balance - coalesce((
                    SELECT sum(left_by.remaining_after)
                    FROM (
                        SELECT DISTINCT ON (change.grant_seq)
                            change.grant_seq,
                            change.remaining_after
                        FROM credit_grant_changes AS change
                        WHERE
                            change.user_id = account.user_id
                            AND change.seq <= then_at.seq
                        ORDER BY change.grant_seq ASC, change.seq DESC, change.step DESC
                    ) AS left_by
                ), 0)
            ELSE account.balance - account.in_grants + coalesce(repaid.credits, 0)
        END AS credits
    FROM user_credits AS account
    LEFT JOIN then_at ON account.user_id = then_at.user_id
    LEFT JOIN repaid ON account.user_id = repaid.user_id
    WHERE
        account.last_updated <= $1::timestamptz
        OR then_at.seq IS NOT NULL
)

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
    coalesce(sum(dated.credits) FILTER (WHERE NOT dated.paid), 0)::bigint AS promotional,
    NULL::bigint AS undated,
    NULL::bigint AS debt,
    NULL::bigint AS accounts_in_debt
FROM dated
WHERE dated.credits > 0
GROUP BY month
UNION ALL
SELECT
    NULL::text AS month,
    NULL::bigint AS paid,
    NULL::bigint AS promotional,
    coalesce(sum(credits) FILTER (WHERE credits > 0), 0)::bigint AS undated,
    coalesce(-sum(credits) FILTER (WHERE credits < 0), 0)::bigint AS debt,
    count(*) FILTER (WHERE credits < 0) AS accounts_in_debt
FROM pools
ORDER BY undated NULLS FIRST, month NULLS LAST
