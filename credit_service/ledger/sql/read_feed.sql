-- Reads a page of the feed: the items after a place, in the order of the feed. A transaction that
-- is still running may write what comes before numbers that are visible already. So only numbers
-- below the boundary are read: those of transactions that had all ended when this statement began.
-- Nothing is read while the owner has not said what a failover or restore means for the numbers.
--
-- Items other than entries come as JSON, because there are few. At least one row comes back, with
-- the first three columns alone if there is no item.
WITH numbers AS MATERIALIZED (
    SELECT
        feed_id,
        passed,
        base + pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS boundary
    FROM credit_feed_numbers
),

readable AS MATERIALIZED (
    SELECT CASE WHEN passed = 0 THEN boundary ELSE 0 END AS boundary
    FROM numbers
),

page AS (
    (
        SELECT
            tx,
            user_id,
            0 AS kind,
            seq AS number,
            null AS other,
            type,
            call,
            amount,
            requested_amount,
            balance_change,
            held_change,
            balance_after,
            held_after,
            floor,
            description,
            timestamp,
            operation,
            quantity,
            unit_cost,
            price_version,
            reference,
            metadata,
            related_seq,
            idempotency_key,
            caller,
            payment_ref,
            payment_amount_minor,
            payment_currency,
            hold_seq
        FROM credit_transactions
        WHERE
            0 = any($2::bigint[])
            AND (tx, user_id, seq) > ($3::bigint, $4::uuid, $5::bigint)
            AND tx < (SELECT readable.boundary FROM readable)
        ORDER BY tx, user_id, seq
        LIMIT $1::bigint
    )
    UNION ALL
    (
        SELECT
            tx,
            user_id,
            1 AS kind,
            change AS number,
            to_jsonb(credit_policy_changes.*)::text AS other,
            null AS type,
            null AS call,
            null AS amount,
            null AS requested_amount,
            null AS balance_change,
            null AS held_change,
            null AS balance_after,
            null AS held_after,
            null AS floor,
            null AS description,
            null AS timestamp,
            null AS operation,
            null AS quantity,
            null AS unit_cost,
            null AS price_version,
            null AS reference,
            null AS metadata,
            null AS related_seq,
            null AS idempotency_key,
            null AS caller,
            null AS payment_ref,
            null AS payment_amount_minor,
            null AS payment_currency,
            null AS hold_seq
        FROM credit_policy_changes
        WHERE
            1 = any($2::bigint[])
            AND (tx, user_id, change) > ($3::bigint, $4::uuid, $6::bigint)
            AND tx < (SELECT readable.boundary FROM readable)
        ORDER BY tx, user_id, change
        LIMIT $1::bigint
    )
    UNION ALL
    (
        SELECT
            tx,
            user_id,
            2 AS kind,
            change AS number,
            to_jsonb(credit_top_up_changes.*)::text AS other,
            null AS type,
            null AS call,
            null AS amount,
            null AS requested_amount,
            null AS balance_change,
            null AS held_change,
            null AS balance_after,
            null AS held_after,
            null AS floor,
            null AS description,
            null AS timestamp,
            null AS operation,
            null AS quantity,
            null AS unit_cost,
            null AS price_version,
            null AS reference,
            null AS metadata,
            null AS related_seq,
            null AS idempotency_key,
            null AS caller,
            null AS payment_ref,
            null AS payment_amount_minor,
            null AS payment_currency,
            null AS hold_seq
        FROM credit_top_up_changes
        WHERE
            2 = any($2::bigint[])
            AND (tx, user_id, change) > ($3::bigint, $4::uuid, $7::bigint)
            AND tx < (SELECT readable.boundary FROM readable)
        ORDER BY tx, user_id, change
        LIMIT $1::bigint
    )
    UNION ALL
    (
        SELECT
            tx,
            user_id,
            3 AS kind,
            alert AS number,
            to_jsonb(credit_alerts.*)::text AS other,
            null AS type,
            null AS call,
            null AS amount,
            null AS requested_amount,
            null AS balance_change,
            null AS held_change,
            null AS balance_after,
            null AS held_after,
            null AS floor,
            null AS description,
            null AS timestamp,
            null AS operation,
            null AS quantity,
            null AS unit_cost,
            null AS price_version,
            null AS reference,
            null AS metadata,
            null AS related_seq,
            null AS idempotency_key,
            null AS caller,
            null AS payment_ref,
            null AS payment_amount_minor,
            null AS payment_currency,
            null AS hold_seq
        FROM credit_alerts
        WHERE
            3 = any($2::bigint[])
            AND (tx, user_id, alert) > ($3::bigint, $4::uuid, $8::bigint)
            AND tx < (SELECT readable.boundary FROM readable)
        ORDER BY tx, user_id, alert
        LIMIT $1::bigint
    )
    UNION ALL
    (
        SELECT
            tx,
            '00000000-0000-0000-0000-000000000000'::uuid AS user_id,
            4 AS kind,
            number,
            to_jsonb(credit_feed_advances.*)::text AS other,
            null AS type,
            null AS call,
            null AS amount,
            null AS requested_amount,
            null AS balance_change,
            null AS held_change,
            null AS balance_after,
            null AS held_after,
            null AS floor,
            null AS description,
            null AS timestamp,
            null AS operation,
            null AS quantity,
            null AS unit_cost,
            null AS price_version,
            null AS reference,
            null AS metadata,
            null AS related_seq,
            null AS idempotency_key,
            null AS caller,
            null AS payment_ref,
            null AS payment_amount_minor,
            null AS payment_currency,
            null AS hold_seq
        FROM credit_feed_advances
        WHERE
            4 = any($2::bigint[])
            AND tx >= $3::bigint
            AND (
                tx > $3::bigint
                OR ($4::uuid = '00000000-0000-0000-0000-000000000000' AND number > $9::bigint)
            )
            AND tx < (SELECT readable.boundary FROM readable)
        ORDER BY tx, number
        LIMIT $1::bigint
    )
    ORDER BY tx, user_id, kind, number
    LIMIT $1::bigint
)

SELECT
    numbers.feed_id,
    numbers.boundary,
    numbers.passed,
    page.tx,
    page.kind,
    page.other,
    page.user_id,
    page.number AS seq,
    page.type,
    page.call,
    page.amount,
    page.requested_amount,
    page.balance_change,
    page.held_change,
    page.balance_after,
    page.held_after,
    page.floor,
    page.description,
    page.timestamp,
    page.operation,
    page.quantity,
    page.unit_cost,
    page.price_version,
    page.reference,
    page.metadata,
    page.related_seq,
    page.idempotency_key,
    page.caller,
    page.payment_ref,
    page.payment_amount_minor,
    page.payment_currency,
    page.hold_seq
FROM numbers
LEFT JOIN page ON true
ORDER BY page.tx, page.user_id, page.kind, page.number
