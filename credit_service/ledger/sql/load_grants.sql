-- Loads what a batch needs about grants: changes, and after them the grants.
--
-- The changes are those of the entries that refunds name, those of the holds whose pins are asked
-- for, or of all open holds of a user, and those that the reversals of a purchase made. Credits
-- that go back into a grant may first restore what its own reversals took elsewhere, so the
-- reversals of every grant that is reached in this way are loaded too.
--
-- The grants are those that these changes name, those that are asked for, the open ones of a
-- series, and of each drawing user the open ones in burn order, until what is free of them, and not
-- due, covers the credits that the batch may draw.
WITH RECURSIVE reached (user_id, seq) AS (
    SELECT
        purchase.user_id,
        purchase.seq
    FROM unnest($1::uuid[], $2::bigint[]) AS purchase (user_id, seq)
    UNION
    SELECT
        change.user_id,
        change.grant_seq
    FROM unnest($3::uuid[], $4::bigint[]) AS entry (user_id, seq)
    INNER JOIN credit_grant_changes AS change
        ON
            entry.user_id = change.user_id
            AND entry.seq = change.seq
    -- distributed: WHERE change.user_id = any($1::uuid[] || $3 || $5 || $7 || $8 || $10 || $12)
    UNION
    SELECT
        change.user_id,
        change.grant_seq
    FROM reached
    INNER JOIN credit_grant_changes AS change
        ON
            reached.user_id = change.user_id
            AND reached.seq = change.reversed_seq
-- distributed: WHERE change.user_id = any($1::uuid[] || $3 || $5 || $7 || $8 || $10 || $12)
),

pinning (user_id, seq) AS (
    SELECT
        asked.user_id,
        asked.seq
    FROM unnest($5::uuid[], $6::bigint[]) AS asked (user_id, seq)
    UNION
    SELECT
        hold.user_id,
        hold.seq
    FROM credit_holds AS hold
    -- distributed: INNER JOIN unnest($7::uuid[]) AS asked (user_id) ON hold.user_id = asked.user_id
    WHERE
        hold.user_id = any($7::uuid[]) -- distributed: hold.user_id
        -- distributed: = any($1::uuid[] || $3 || $5 || $7 || $8 || $10 || $12)
        AND hold.state = 'held'
),

changes AS (
    SELECT change.*
    FROM unnest($3::uuid[], $4::bigint[]) AS entry (user_id, seq)
    INNER JOIN credit_grant_changes AS change
        ON
            entry.user_id = change.user_id
            AND entry.seq = change.seq
    -- distributed: WHERE change.user_id = any($1::uuid[] || $3 || $5 || $7 || $8 || $10 || $12)
    UNION
    SELECT change.*
    FROM pinning
    INNER JOIN credit_grant_changes AS change
        ON
            pinning.user_id = change.user_id
            AND pinning.seq = change.hold_seq
    -- distributed: WHERE change.user_id = any($1::uuid[] || $3 || $5 || $7 || $8 || $10 || $12)
    UNION
    SELECT change.*
    FROM reached
    INNER JOIN credit_grant_changes AS change
        ON
            reached.user_id = change.user_id
            AND reached.seq = change.reversed_seq
-- distributed: WHERE change.user_id = any($1::uuid[] || $3 || $5 || $7 || $8 || $10 || $12)
),

named (user_id, seq) AS (
    SELECT
        asked.user_id,
        asked.seq
    FROM unnest($8::uuid[], $9::bigint[]) AS asked (user_id, seq)
    UNION
    SELECT
        reached.user_id,
        reached.seq
    FROM reached
    UNION
    SELECT
        changes.user_id,
        changes.grant_seq
    FROM changes
    UNION
    SELECT
        member.user_id,
        member.seq
    FROM unnest($10::uuid[], $11::text[]) AS asked (user_id, series)
    INNER JOIN credit_grants AS member
        ON
            asked.user_id = member.user_id
            AND asked.series = member.series
            AND member.open
    -- distributed: WHERE member.user_id = any($1::uuid[] || $3 || $5 || $7 || $8 || $10 || $12)
    UNION
    SELECT
        burning.user_id,
        burning.seq
    FROM unnest($12::uuid[], $13::bigint[]) AS drawing (user_id, credits)
    CROSS JOIN
        LATERAL ( -- noqa: ST05
            SELECT
                granted.user_id,
                granted.seq,
                coalesce(
                    sum(
                        CASE
                            WHEN granted.expire_time <= $14::timestamptz THEN 0
                            ELSE granted.remaining - granted.pinned
                        END
                    ) OVER (
                        ORDER BY granted.priority, granted.expire_time, granted.paid, granted.seq
                        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
                    ),
                    0
                ) AS before
            FROM credit_grants AS granted
            WHERE
                granted.user_id = drawing.user_id
                -- distributed: AND granted.user_id
                -- distributed: = any($1::uuid[] || $3 || $5 || $7 || $8 || $10 || $12)
                AND granted.open
        ) AS burning
    WHERE burning.before < drawing.credits
)

SELECT
    null::uuid AS user_id,
    null::bigint AS seq,
    null::bigint AS amount,
    null::bigint AS remaining,
    null::bigint AS pinned,
    null::bigint AS priority,
    null::timestamptz AS expire_time,
    null::timestamptz AS asked_time,
    null::bigint AS valid_for_us,
    null::boolean AS paid,
    null::text AS series,
    null::boolean AS revoked,
    null::boolean AS open,
    null::bigint AS lapsed,
    null::bigint AS counted,
    null::bigint AS reversed,
    changes.user_id AS change_user_id,
    changes.seq AS change_seq,
    changes.grant_seq,
    changes.hold_seq,
    changes.remaining_change,
    changes.pinned_change,
    changes.remaining_after,
    changes.pinned_after,
    changes.expire_after,
    changes.lapsed_at,
    changes.reversed_seq,
    changes.step
FROM changes
UNION ALL
SELECT
    granted.user_id,
    granted.seq,
    granted.amount,
    granted.remaining,
    granted.pinned,
    granted.priority,
    granted.expire_time,
    granted.asked_time,
    granted.valid_for_us,
    granted.paid,
    granted.series,
    granted.revoked,
    granted.open,
    granted.lapsed,
    granted.counted,
    granted.reversed,
    null::uuid AS change_user_id,
    null::bigint AS change_seq,
    null::bigint AS grant_seq,
    null::bigint AS hold_seq,
    null::bigint AS remaining_change,
    null::bigint AS pinned_change,
    null::bigint AS remaining_after,
    null::bigint AS pinned_after,
    null::timestamptz AS expire_after,
    null::timestamptz AS lapsed_at,
    null::bigint AS reversed_seq,
    null::bigint AS step
FROM named
INNER JOIN credit_grants AS granted
    ON
        named.user_id = granted.user_id
        AND named.seq = granted.seq
-- distributed: WHERE granted.user_id = any($1::uuid[] || $3 || $5 || $7 || $8 || $10 || $12)
ORDER BY change_seq, step
