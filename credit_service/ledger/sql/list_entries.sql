-- Lists a page of a user's entries, newest first, with the seq that the page begins at and how many
-- grants the account has had. Without types: the entries that moved the balance. It looks at a
-- bounded number of entries. A page without entries is one row that has only these two; a user
-- without an account has no row.
SELECT
    entry.user_id,
    entry.seq,
    entry.type,
    entry.call,
    entry.amount,
    entry.requested_amount,
    entry.balance_change,
    entry.held_change,
    entry.balance_after,
    entry.held_after,
    entry.floor,
    entry.description,
    entry.timestamp,
    entry.operation,
    entry.quantity,
    entry.unit_cost,
    entry.price_version,
    entry.reference,
    entry.metadata,
    entry.related_seq,
    entry.idempotency_key,
    entry.caller,
    entry.payment_ref,
    entry.payment_amount_minor,
    entry.payment_currency,
    entry.hold_seq,
    page.newest,
    page.grants_made
FROM (
    SELECT
        account.grants_made,
        least(account.seq, $2::bigint) AS newest
    FROM user_credits AS account
    WHERE account.user_id = $1::uuid
) AS page
LEFT JOIN LATERAL ( -- noqa: ST05
    SELECT
        listed.user_id,
        listed.seq,
        listed.type,
        listed.call,
        listed.amount,
        listed.requested_amount,
        listed.balance_change,
        listed.held_change,
        listed.balance_after,
        listed.held_after,
        listed.floor,
        listed.description,
        listed.timestamp,
        listed.operation,
        listed.quantity,
        listed.unit_cost,
        listed.price_version,
        listed.reference,
        listed.metadata,
        listed.related_seq,
        listed.idempotency_key,
        listed.caller,
        listed.payment_ref,
        listed.payment_amount_minor,
        listed.payment_currency,
        listed.hold_seq
    -- The inner limit leaves nothing out, because the bounds of seq allow no more rows. Without it
    -- the planner expects to need them all, and in a book of few users it scans all entries by
    -- another index and sorts them.
    FROM (
        SELECT
            looked.user_id,
            looked.seq,
            looked.type,
            looked.call,
            looked.amount,
            looked.requested_amount,
            looked.balance_change,
            looked.held_change,
            looked.balance_after,
            looked.held_after,
            looked.floor,
            looked.description,
            looked.timestamp,
            looked.operation,
            looked.quantity,
            looked.unit_cost,
            looked.price_version,
            looked.reference,
            looked.metadata,
            looked.related_seq,
            looked.idempotency_key,
            looked.caller,
            looked.payment_ref,
            looked.payment_amount_minor,
            looked.payment_currency,
            looked.hold_seq
        FROM credit_transactions AS looked
        WHERE
            looked.user_id = $1::uuid
            AND looked.seq <= page.newest
            AND looked.seq > greatest($3::bigint, page.newest - $8::bigint)
            -- A plan for these values, as one with a relation gets, compares this with an index.
            AND CASE WHEN $6::bigint IS NULL THEN TRUE ELSE looked.related_seq = $6::bigint END
        ORDER BY looked.seq DESC
        -- In a query of its own, so that plans for these values, which Citus makes, do not know
        -- it. If they expected fewer entries, they would read all of the user's and sort them.
        LIMIT (SELECT $8::bigint)
    ) AS listed
    WHERE
        CASE
            WHEN $4::text[] IS NULL THEN listed.balance_change <> 0
            ELSE listed.type = any($4::text[])
        END
        AND ($5::text IS NULL OR listed.reference = $5::text)
        AND (
            $9::bigint IS NULL
            OR EXISTS (
                SELECT 1
                FROM credit_grant_changes AS change
                WHERE
                    change.user_id = $1::uuid
                    AND change.seq = listed.seq
                    AND change.grant_seq = $9::bigint
            )
        )
    ORDER BY listed.seq DESC
    LIMIT $7::bigint
) AS entry ON TRUE
ORDER BY entry.seq DESC
