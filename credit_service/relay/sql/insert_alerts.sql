-- Writes alerts, numbered after the earlier ones of their users. In the feed they follow what has
-- brought them about, because their tx is not below that of the account. A user may have been
-- deleted meanwhile.
INSERT INTO credit_alerts (user_id, alert, tx, type, alerted_at, data)
SELECT
    made.user_id,
    coalesce(earlier.alert, 0)
    + row_number() OVER (PARTITION BY made.user_id ORDER BY made.place) AS alert,
    greatest(numbers.base + pg_current_xact_id()::text::bigint, account.tx) AS tx,
    made.type,
    coalesce(made.alerted_at, clock_timestamp()) AS alerted_at,
    made.data::jsonb AS data
FROM
    unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::text[])
    WITH ORDINALITY AS made (user_id, type, alerted_at, data, place)
INNER JOIN user_credits AS account ON made.user_id = account.user_id
CROSS JOIN credit_feed_numbers AS numbers
CROSS JOIN
    LATERAL ( -- noqa: ST05
        SELECT max(alert.alert) AS alert
        FROM credit_alerts AS alert
        WHERE alert.user_id = made.user_id
    ) AS earlier
