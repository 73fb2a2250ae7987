-- Lists holds of a user up to a seq, newest first, in one state or any. A hold whose time has
-- passed counts as expired, whether that was recorded yet or not. The time is that of the
-- transaction's start, as in get_account.
SELECT
    clock.now,
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
FROM (SELECT now() AS now) AS clock
LEFT JOIN credit_holds AS hold
    ON
        hold.user_id = $1::uuid
        AND hold.seq <= $2::bigint
        AND (
            $3::text IS NULL
            OR $3::text = CASE
                WHEN hold.state = 'held' AND clock.now >= hold.expires_at THEN 'expired'
                ELSE hold.state
            END
        )
ORDER BY hold.seq DESC
LIMIT $4::bigint
