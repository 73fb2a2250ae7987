-- Adds up the changes that a batch would make by settling what is due by a time, ends of holds
-- and lapses of grants, and when credits lapse next. A user without open holds and grants has no
-- row.
--
-- Only debt makes the order matter. While the pool is below zero, no grant has a rest that no hold
-- has set aside. So the credits that ending holds give up pay the debt first, in the order of those
-- ends and, of one hold, in burn order; `earlier` is what came before them. What is left of them
-- stays in its grant, or goes with it where that is closed or its time has passed.
WITH ended AS (
    SELECT
        hold.user_id,
        hold.seq,
        hold.amount,
        hold.expires_at
    FROM unnest($1::uuid[]) AS asked (user_id)
    INNER JOIN credit_holds AS hold ON asked.user_id = hold.user_id
    WHERE
        hold.state = 'held'
        AND hold.expires_at <= $2::timestamptz
),

given_up AS (
    SELECT
        pin.user_id,
        pin.grant_seq,
        pin.credits,
        granted.remaining,
        granted.pinned,
        granted.expire_time,
        granted.open,
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
            ended.user_id,
            ended.seq AS hold_seq,
            ended.expires_at,
            change.grant_seq,
            sum(change.pinned_change) AS credits
        FROM ended
        INNER JOIN credit_grant_changes AS change
            ON
                ended.user_id = change.user_id
                AND ended.seq = change.hold_seq
        GROUP BY ended.user_id, ended.seq, ended.expires_at, change.grant_seq
        HAVING sum(change.pinned_change) > 0
    ) AS pin
    INNER JOIN credit_grants AS granted
        ON
            pin.user_id = granted.user_id
            AND pin.grant_seq = granted.seq
    INNER JOIN user_credits AS account ON pin.user_id = account.user_id
),

settled AS (
    SELECT
        part.user_id,
        part.expire_time,
        part.open,
        part.open AND coalesce(part.expire_time > $2::timestamptz, TRUE) AS stays,
        sum(part.unpinned) AS unpinned,
        sum(part.paid) AS paid,
        -- The credits that no hold has set aside when all is settled, before they lapse.
        part.remaining - part.pinned + sum(part.unpinned) - sum(part.paid) AS rest,
        part.pinned - sum(part.unpinned) AS pinned
    FROM (
        SELECT
            granted.user_id,
            granted.seq,
            granted.remaining,
            granted.pinned,
            granted.expire_time,
            granted.open,
            0 AS unpinned,
            0 AS paid
        FROM unnest($1::uuid[]) AS asked (user_id)
        INNER JOIN credit_grants AS granted ON asked.user_id = granted.user_id
        WHERE granted.open
        UNION ALL
        SELECT
            given_up.user_id,
            given_up.grant_seq AS seq,
            given_up.remaining,
            given_up.pinned,
            given_up.expire_time,
            given_up.open,
            given_up.credits AS unpinned,
            greatest(0, least(given_up.credits, given_up.debt - given_up.earlier)) AS paid
        FROM given_up
    ) AS part
    GROUP BY
        part.user_id, part.seq, part.remaining, part.pinned, part.expire_time, part.open
),

dated AS (
    SELECT
        settled.user_id,
        settled.expire_time,
        sum(settled.rest)::bigint AS credits,
        row_number() OVER (
            PARTITION BY settled.user_id
            ORDER BY settled.expire_time
        ) AS place
    FROM settled
    WHERE
        settled.stays
        AND settled.expire_time IS NOT NULL
        AND settled.rest > 0
    GROUP BY settled.user_id, settled.expire_time
)

SELECT
    change.user_id,
    sum(change.ended)::bigint AS ended,
    sum(change.lapsed)::bigint AS lapsed,
    sum(change.paid)::bigint AS paid,
    sum(change.unpinned)::bigint AS unpinned,
    sum(change.closed)::bigint AS closed,
    array_remove(array_agg(change.expire_time ORDER BY change.expire_time), NULL) AS times,
    array_remove(array_agg(change.credits ORDER BY change.expire_time), NULL) AS credits
FROM (
    SELECT
        ended.user_id,
        sum(ended.amount) AS ended,
        0 AS lapsed,
        0 AS paid,
        0 AS unpinned,
        0 AS closed,
        NULL::timestamptz AS expire_time,
        NULL::bigint AS credits
    FROM ended
    GROUP BY ended.user_id
    UNION ALL
    SELECT
        settled.user_id,
        0 AS ended,
        coalesce(sum(settled.rest) FILTER (WHERE NOT settled.stays), 0) AS lapsed,
        sum(settled.paid) AS paid,
        sum(settled.unpinned) AS unpinned,
        count(*) FILTER (
            WHERE settled.open AND NOT (settled.stays AND settled.rest + settled.pinned > 0)
        ) AS closed,
        NULL::timestamptz AS expire_time,
        NULL::bigint AS credits
    FROM settled
    GROUP BY settled.user_id
    UNION ALL
    SELECT
        dated.user_id,
        0 AS ended,
        0 AS lapsed,
        0 AS paid,
        0 AS unpinned,
        0 AS closed,
        dated.expire_time,
        dated.credits
    FROM dated
    WHERE dated.place <= $3::bigint
) AS change
GROUP BY change.user_id
