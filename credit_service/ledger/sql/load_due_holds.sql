-- Loads holds whose time has passed: user by user in the order asked for, of each the soonest
-- first, and no more than a batch takes. The nested loop ends with the last hold that is wanted, so
-- that the cost follows what is loaded and not what is due. An ORDER BY would read everything that
-- is due.
SELECT
    due.user_id,
    due.seq,
    due.state,
    due.amount,
    due.captured,
    due.created_at,
    due.expires_at,
    due.operation,
    due.quantity,
    due.unit_cost,
    due.price_version,
    due.reference,
    due.settled_seq,
    due.captured_seq
FROM unnest($1::uuid[]) AS asked (user_id) -- distributed: FROM (
-- distributed:     SELECT account.user_id FROM user_credits AS account
-- distributed:     WHERE account.user_id = any($1::uuid[])
-- distributed:     ORDER BY array_position($1::uuid[], account.user_id)
-- distributed: ) AS asked
CROSS JOIN
    LATERAL ( -- noqa: ST05
        SELECT
            hold.user_id,
            hold.seq,
            hold.state,
            hold.amount,
            hold.captured,
            hold.created_at,
            hold.expires_at,
            hold.operation,
            hold.quantity,
            hold.unit_cost,
            hold.price_version,
            hold.reference,
            hold.settled_seq,
            hold.captured_seq
        FROM credit_holds AS hold
        WHERE
            hold.user_id = asked.user_id
            -- distributed: AND hold.user_id = any($1::uuid[])
            AND hold.state = 'held'
            AND hold.expires_at <= $2::timestamptz
        ORDER BY hold.expires_at, hold.seq
        LIMIT $3::bigint
    ) AS due
LIMIT $3::bigint -- noqa: AM09
