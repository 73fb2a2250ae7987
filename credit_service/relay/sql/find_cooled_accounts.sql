-- Finds accounts of which a state waits for the end of a cool-down that has ended by a moment, by
-- now if none is given, the longest ended first.
SELECT
    user_id,
    level,
    cools_until,
    waiting_tx,
    waiting_is_policy,
    waiting_number,
    waiting_time,
    waiting_balance,
    waiting_held,
    waiting_floor,
    waiting_alert_below
FROM credit_alert_states
WHERE
    waiting_tx IS NOT NULL
    AND cools_until <= coalesce($1::timestamptz, now())
ORDER BY cools_until
LIMIT $2::bigint
