-- Writes what was last announced of accounts. A user may have been deleted meanwhile.
INSERT INTO credit_alert_states (
    user_id, level, cools_until, waiting_tx, waiting_is_policy, waiting_number, waiting_time,
    waiting_balance, waiting_held, waiting_floor, waiting_alert_below
)
SELECT
    state.user_id,
    state.level,
    state.cools_until,
    state.waiting_tx,
    state.waiting_is_policy,
    state.waiting_number,
    state.waiting_time,
    state.waiting_balance,
    state.waiting_held,
    state.waiting_floor,
    state.waiting_alert_below
FROM
    unnest(
        $1::uuid[], $2::text[], $3::timestamptz[], $4::bigint[], $5::boolean[], $6::bigint[],
        $7::timestamptz[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[]
    ) AS state (
        user_id, level, cools_until, waiting_tx, waiting_is_policy, waiting_number, waiting_time,
        waiting_balance, waiting_held, waiting_floor, waiting_alert_below
    )
INNER JOIN user_credits AS account ON state.user_id = account.user_id
ON CONFLICT (user_id) DO UPDATE SET
    level = excluded.level,
    cools_until = excluded.cools_until,
    waiting_tx = excluded.waiting_tx,
    waiting_is_policy = excluded.waiting_is_policy,
    waiting_number = excluded.waiting_number,
    waiting_time = excluded.waiting_time,
    waiting_balance = excluded.waiting_balance,
    waiting_held = excluded.waiting_held,
    waiting_floor = excluded.waiting_floor,
    waiting_alert_below = excluded.waiting_alert_below
