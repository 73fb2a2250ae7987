-- What was last announced of accounts; no row: nothing, or that they have enough again.
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
WHERE user_id = ANY($1::uuid[])
