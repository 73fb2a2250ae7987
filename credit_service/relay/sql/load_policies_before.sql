-- What alerts need of the policy that an account had before a transaction; no row: it had none.
SELECT
    asked.user_id,
    change.frozen,
    change.min_balance,
    change.alert_below
FROM unnest($1::uuid[], $2::bigint[]) AS asked (user_id, tx)
CROSS JOIN
    LATERAL ( -- noqa: ST05
        SELECT
            earlier.frozen,
            earlier.min_balance,
            earlier.alert_below
        FROM credit_policy_changes AS earlier
        WHERE
            earlier.user_id = asked.user_id
            AND earlier.tx < asked.tx
        ORDER BY earlier.change DESC
        LIMIT 1
    ) AS change
