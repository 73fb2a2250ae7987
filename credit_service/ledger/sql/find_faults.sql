-- Names every fault of these accounts: an account and a sentence per fault.
-- On a distributed book the accounts are of one shard, and the records of their payments, which are
-- on other shards, come with them.
-- distributed: WITH credit_purchases AS (
-- distributed:     SELECT *
-- distributed:     FROM unnest($2::text[], $3::uuid[], $4::bigint[], $5::bigint[])
-- distributed:         AS given (payment_ref, user_id, seq, amount)
-- distributed: ),
-- distributed: credit_reversals AS (
-- distributed:     SELECT *
-- distributed:     FROM unnest(
-- distributed:         $6::text[], $7::bigint[], $8::text[], $9::bigint[], $10::bigint[],
-- distributed:         $11::bigint[]
-- distributed:     ) AS given (
-- distributed:         reversal_ref, revision, payment_ref, reversed_minor, paid_minor, counted
-- distributed:     )
-- distributed: ),
WITH book AS ( -- distributed: book AS (
    SELECT
        user_id,
        seq,
        type,
        amount,
        balance_change,
        timestamp,
        balance_after,
        held_after,
        related_seq,
        hold_seq,
        payment_ref,
        tx,
        row_number() OVER account AS position,
        sum(balance_change) OVER account AS running_balance,
        sum(held_change) OVER account AS running_held,
        lag(timestamp) OVER account AS earlier,
        lag(tx) OVER account AS earlier_tx
    FROM credit_transactions
    WHERE user_id = any($1::uuid[])
    WINDOW account AS (PARTITION BY user_id ORDER BY seq)
),

written AS (
    SELECT
        numbered.user_id,
        max(numbered.tx) AS tx
    FROM (
        SELECT
            user_id,
            tx
        FROM book
        UNION ALL
        SELECT
            user_id,
            tx
        FROM credit_policy_changes
        WHERE user_id = any($1::uuid[])
    ) AS numbered
    GROUP BY numbered.user_id
),

summed AS (
    SELECT DISTINCT ON (user_id)
        user_id,
        position AS entries,
        running_balance AS balance,
        running_held AS held
    FROM book
    ORDER BY user_id ASC, seq DESC
),

holding AS (
    SELECT
        user_id,
        sum(amount) FILTER (WHERE state = 'held') AS held,
        count(*) FILTER (WHERE state = 'held') AS open_holds,
        min(expires_at) FILTER (WHERE state = 'held') AS next_expiry
    FROM credit_holds
    WHERE user_id = any($1::uuid[])
    GROUP BY user_id
),

given_back AS (
    SELECT
        user_id,
        related_seq,
        sum(amount) AS refunded
    FROM book
    WHERE type = 'refund' AND related_seq IS NOT NULL
    GROUP BY user_id, related_seq
),

taken_back AS (
    SELECT
        user_id,
        related_seq,
        -sum(balance_change) AS credits
    FROM book
    WHERE type = 'reversal' AND related_seq IS NOT NULL
    GROUP BY user_id, related_seq
),

counted AS (
    SELECT
        payment_ref,
        sum(counted) AS credits
    FROM credit_reversals
    WHERE payment_ref IN (SELECT book.payment_ref FROM book)
    GROUP BY payment_ref
),

changes AS (
    SELECT
        change.user_id,
        change.seq,
        change.step,
        change.grant_seq,
        change.hold_seq,
        change.pinned_change,
        change.remaining_after,
        change.pinned_after,
        change.expire_after,
        sum(change.remaining_change) OVER (granted ORDER BY change.seq, change.step)
            AS running_remaining,
        sum(change.pinned_change) OVER (granted ORDER BY change.seq, change.step)
            AS running_pinned,
        sum(change.remaining_change) FILTER (WHERE book.type IN ('lapse', 'revocation'))
            OVER granted AS lapsed_change,
        row_number() OVER (granted ORDER BY change.seq DESC, change.step DESC) AS from_last,
        book.seq IS NULL AS is_orphan
    FROM credit_grant_changes AS change
    LEFT JOIN book ON change.user_id = book.user_id AND change.seq = book.seq
    WHERE change.user_id = any($1::uuid[])
    WINDOW granted AS (PARTITION BY change.user_id, change.grant_seq)
),

pins AS (
    SELECT
        user_id,
        hold_seq,
        grant_seq,
        sum(pinned_change) AS credits
    FROM changes
    WHERE hold_seq IS NOT NULL
    GROUP BY user_id, hold_seq, grant_seq
),

granted AS (
    SELECT
        user_id,
        sum(remaining) AS remaining,
        sum(pinned) AS pinned,
        count(*) FILTER (WHERE open) AS open_grants,
        count(*) AS grants_made,
        min(expire_time) FILTER (WHERE open) AS next_lapse
    FROM credit_grants
    WHERE user_id = any($1::uuid[])
    GROUP BY user_id
),

standing AS (
    SELECT DISTINCT ON (payment_ref, reversal_ref)
        payment_ref,
        reversed_minor,
        paid_minor
    FROM credit_reversals
    WHERE payment_ref IN (SELECT book.payment_ref FROM book)
    ORDER BY payment_ref ASC, reversal_ref ASC, revision DESC
),

gone AS (
    SELECT
        payment_ref,
        max(paid_minor) AS paid_minor,
        least(sum(reversed_minor), max(paid_minor)) AS reversed_minor
    FROM standing
    GROUP BY payment_ref
),

asked AS (
    SELECT
        request.user_id,
        request.number,
        request.state,
        request.payment_ref,
        request.tries,
        request.seq,
        bought.seq AS bought_seq,
        date_trunc('month', bought.timestamp AT TIME ZONE 'UTC') AS bought_month
    FROM credit_top_ups AS request
    LEFT JOIN book AS bought
        ON
            request.user_id = bought.user_id
            AND request.payment_ref = bought.payment_ref
            AND bought.type = 'purchase'
    WHERE request.user_id = any($1::uuid[])
),

top_up_changes AS (
    SELECT
        user_id,
        number,
        state,
        payment_ref,
        tries,
        seq,
        off,
        count(*) OVER (PARTITION BY user_id) AS changes,
        max(change) OVER (PARTITION BY user_id) AS last_change,
        row_number() OVER (PARTITION BY user_id ORDER BY change DESC) AS from_last,
        row_number() OVER (PARTITION BY user_id, number ORDER BY change DESC) AS from_last_of_it
    FROM credit_top_up_changes
    WHERE user_id = any($1::uuid[])
),

last_top_up_changes AS (
    SELECT
        user_id,
        off
    FROM top_up_changes
    WHERE from_last = 1
),

top_up_counts AS (
    SELECT
        user_id,
        off
    FROM credit_top_up_counts
    WHERE user_id = any($1::uuid[])
)

SELECT
    user_id,
    'the entries have a gap or a double at seq ' || seq AS fault
FROM book
WHERE position <> seq
UNION ALL
SELECT
    user_id,
    'balance_after of seq ' || seq || ' is not the sum of the changes' AS fault
FROM book
WHERE running_balance <> balance_after
UNION ALL
SELECT
    user_id,
    'held_after of seq ' || seq || ' is not the sum of the changes' AS fault
FROM book
WHERE running_held <> held_after
UNION ALL
SELECT
    user_id,
    'the time of seq ' || seq || ' is before that of the entry before it' AS fault
FROM book
WHERE timestamp < earlier
UNION ALL
SELECT
    user_id,
    'the time of seq ' || seq || ' is not between the years 1 and 9999' AS fault
FROM book
WHERE
    timestamp < timestamptz '0001-01-01 00:00:00+00'
    OR timestamp >= timestamptz '10000-01-01 00:00:00+00'
UNION ALL
SELECT
    account.user_id,
    'the account says balance ' || account.balance || ', held ' || account.held || ', seq '
    || account.seq || '; the entries say ' || coalesce(summed.balance, 0) || ', '
    || coalesce(summed.held, 0) || ', ' || coalesce(summed.entries, 0) AS fault
FROM user_credits AS account
LEFT JOIN summed ON account.user_id = summed.user_id
WHERE
    account.user_id = any($1::uuid[])
    AND (account.balance, account.held, account.seq)
    <> (coalesce(summed.balance, 0), coalesce(summed.held, 0), coalesce(summed.entries, 0))
UNION ALL
SELECT
    account.user_id,
    'the account says held ' || account.held || ' by ' || account.open_holds
    || ' open holds; the holds say ' || coalesce(holding.held, 0) || ' by '
    || coalesce(holding.open_holds, 0) AS fault
FROM user_credits AS account
LEFT JOIN holding ON account.user_id = holding.user_id
WHERE
    account.user_id = any($1::uuid[])
    AND (account.held, account.open_holds)
    <> (coalesce(holding.held, 0), coalesce(holding.open_holds, 0))
UNION ALL
SELECT
    account.user_id,
    'an open hold ends before the account expects the next one to' AS fault
FROM user_credits AS account
INNER JOIN holding ON account.user_id = holding.user_id
WHERE
    account.user_id = any($1::uuid[])
    AND (
        holding.next_expiry < account.next_hold_expiry
        OR (holding.next_expiry IS NOT NULL AND account.next_hold_expiry IS NULL)
    )
UNION ALL
SELECT
    hold.user_id,
    'hold ' || hold.seq || ' is ' || hold.state || ', which its entries do not say' AS fault
FROM credit_holds AS hold
WHERE
    hold.user_id = any($1::uuid[])
    AND hold.state <> coalesce(
        (
            SELECT
                CASE entry.type
                    WHEN 'capture' THEN 'captured'
                    WHEN 'release' THEN 'released'
                    WHEN 'expire' THEN 'expired'
                END
            FROM credit_transactions AS entry
            WHERE
                entry.user_id = hold.user_id
                AND entry.seq = hold.settled_seq
                AND entry.hold_seq = hold.seq
                -- distributed: AND entry.user_id = any($1::uuid[])
        ),
        'held'
    )
UNION ALL
SELECT
    hold.user_id,
    'hold ' || hold.seq || ' of ' || hold.amount || ', captured ' || hold.captured
    || ', has other entries' AS fault
FROM credit_holds AS hold
LEFT JOIN book AS made ON hold.user_id = made.user_id AND hold.seq = made.seq
LEFT JOIN book AS taken ON hold.user_id = taken.user_id AND hold.captured_seq = taken.seq
WHERE
    hold.user_id = any($1::uuid[])
    AND (
        (made.type, made.amount) IS DISTINCT FROM ('hold', hold.amount)
        OR (
            hold.captured_seq IS NOT NULL
            AND (taken.type, taken.amount, taken.hold_seq)
            IS DISTINCT FROM ('capture', hold.captured, hold.seq)
        )
    )
UNION ALL
SELECT
    book.user_id,
    'the hold of seq ' || book.seq || ' is missing' AS fault
FROM book
LEFT JOIN credit_holds AS hold
    ON
        book.user_id = hold.user_id
        AND book.seq = hold.seq
        -- distributed: AND hold.user_id = any($1::uuid[])
WHERE book.type = 'hold' AND hold.seq IS NULL
UNION ALL
SELECT
    book.user_id,
    'the ' || book.type || ' of seq ' || book.seq || ' is not what hold ' || book.hold_seq
    || ' says became of it' AS fault
FROM book
LEFT JOIN credit_holds AS hold
    ON
        book.user_id = hold.user_id
        AND book.hold_seq = hold.seq
        -- distributed: AND hold.user_id = any($1::uuid[])
WHERE
    book.type IN ('capture', 'release', 'expire')
    AND book.seq IS DISTINCT FROM CASE book.type
        WHEN 'capture' THEN hold.captured_seq
        ELSE hold.settled_seq
    END
UNION ALL
SELECT
    record.user_id,
    'seq ' || record.spend_seq || ' is recorded as refunded, and no refund names it' AS fault
FROM credit_refunds AS record
LEFT JOIN given_back
    ON record.user_id = given_back.user_id AND record.spend_seq = given_back.related_seq
WHERE record.user_id = any($1::uuid[]) AND given_back.related_seq IS NULL
UNION ALL
SELECT
    given_back.user_id,
    'the refunds of seq ' || given_back.related_seq || ' add up to ' || given_back.refunded
    || ', its record says ' || coalesce(record.refunded, 0) || ' of '
    || coalesce(spent.amount, 0) AS fault
FROM given_back
LEFT JOIN credit_refunds AS record
    ON
        given_back.user_id = record.user_id
        AND given_back.related_seq = record.spend_seq
        -- distributed: AND record.user_id = any($1::uuid[])
LEFT JOIN book AS spent
    ON
        given_back.user_id = spent.user_id
        AND given_back.related_seq = spent.seq
WHERE
    given_back.refunded IS DISTINCT FROM record.refunded
    OR given_back.refunded > spent.amount
    OR spent.type NOT IN ('spend', 'capture')
UNION ALL
SELECT
    book.user_id,
    'payment ' || book.payment_ref || ' of seq ' || book.seq || ' is recorded otherwise' AS fault
FROM book
LEFT JOIN credit_purchases AS bought ON book.payment_ref = bought.payment_ref
WHERE
    book.payment_ref IS NOT NULL
    AND (book.user_id, book.seq, book.amount)
    IS DISTINCT FROM (bought.user_id, bought.seq, bought.amount)
UNION ALL
SELECT
    book.user_id,
    'the reversals of seq ' || book.seq || ' took ' || coalesce(taken_back.credits, 0)
    || ' credits; its refunds and disputes say '
    || coalesce(div(book.amount * gone.reversed_minor, gone.paid_minor), 0)
    || ', of which they counted ' || coalesce(counted.credits, 0) || ' that had lapsed' AS fault
FROM book
LEFT JOIN gone ON book.payment_ref = gone.payment_ref
LEFT JOIN counted ON book.payment_ref = counted.payment_ref
LEFT JOIN taken_back
    ON
        book.user_id = taken_back.user_id
        AND book.seq = taken_back.related_seq
WHERE
    book.type = 'purchase'
    AND coalesce(taken_back.credits, 0) + coalesce(counted.credits, 0)
    <> coalesce(div(book.amount * gone.reversed_minor, gone.paid_minor), 0)
UNION ALL
SELECT
    kept.user_id,
    'key ' || kept.key || ' of ' || kept.call || ' was answered with seq ' || kept.seq
    || ', which does not answer it' AS fault
FROM credit_kept_keys AS kept
LEFT JOIN book ON kept.user_id = book.user_id AND kept.seq = book.seq
WHERE
    kept.user_id = any($1::uuid[])
    AND CASE
        WHEN kept.call = 'PurchaseCredits'
            THEN book.payment_ref IS NULL
        -- Nothing was left to revoke, so the answer is the entry that made the grant.
        WHEN kept.call = 'RevokeGrant'
            THEN NOT EXISTS (
                SELECT 1 FROM credit_grants AS revoked
                WHERE
                    revoked.user_id = kept.user_id
                    AND revoked.seq = kept.seq
                    -- distributed: AND revoked.user_id = any($1::uuid[])
            )
        ELSE coalesce(book.type NOT IN ('release', 'expire'), TRUE)
    END
UNION ALL
SELECT
    kept.user_id,
    'key ' || kept.key || ' of ' || kept.call || ' is also that of seq ' || entry.seq AS fault
FROM credit_kept_keys AS kept
INNER JOIN credit_transactions AS entry
    ON
        kept.user_id = entry.user_id
        AND kept.key = entry.idempotency_key
        -- distributed: AND entry.user_id = any($1::uuid[])
WHERE kept.user_id = any($1::uuid[])
UNION ALL
SELECT DISTINCT
    book.user_id,
    'reversal ' || record.reversal_ref || ' of payment ' || book.payment_ref
    || ' is also recorded for payment ' || other.payment_ref AS fault
FROM book
INNER JOIN credit_reversals AS record ON book.payment_ref = record.payment_ref
INNER JOIN credit_reversals AS other
    ON
        record.reversal_ref = other.reversal_ref
        AND record.payment_ref <> other.payment_ref
UNION ALL
SELECT
    account.user_id,
    'the account says ' || account.in_grants || ' in grants, ' || account.pinned || ' pinned, '
    || account.open_grants || ' open of ' || account.grants_made || '; the grants say '
    || coalesce(granted.remaining, 0) || ', ' || coalesce(granted.pinned, 0) || ', '
    || coalesce(granted.open_grants, 0) || ' of ' || coalesce(granted.grants_made, 0) AS fault
FROM user_credits AS account
LEFT JOIN granted ON account.user_id = granted.user_id
WHERE
    account.user_id = any($1::uuid[])
    AND (account.in_grants, account.pinned, account.open_grants, account.grants_made)
    <> (
        coalesce(granted.remaining, 0),
        coalesce(granted.pinned, 0),
        coalesce(granted.open_grants, 0),
        coalesce(granted.grants_made, 0)
    )
UNION ALL
SELECT
    account.user_id,
    'an open grant lapses before the account expects the next one to' AS fault
FROM user_credits AS account
INNER JOIN granted ON account.user_id = granted.user_id
WHERE
    account.user_id = any($1::uuid[])
    AND (
        granted.next_lapse < account.next_lapse
        OR (granted.next_lapse IS NOT NULL AND account.next_lapse IS NULL)
    )
UNION ALL
SELECT
    record.user_id,
    'grant ' || record.seq || ' says ' || record.remaining || ' left, ' || record.pinned
    || ' pinned, ' || record.lapsed || ' lapsed, until '
    || coalesce(record.expire_time::text, 'ever') || '; its changes say otherwise' AS fault
FROM credit_grants AS record
LEFT JOIN changes
    ON
        record.user_id = changes.user_id
        AND record.seq = changes.grant_seq
        AND changes.from_last = 1
WHERE
    record.user_id = any($1::uuid[])
    AND (record.remaining, record.pinned, record.lapsed, record.expire_time)
    IS DISTINCT FROM (
        changes.running_remaining,
        changes.running_pinned,
        -coalesce(changes.lapsed_change, 0),
        changes.expire_after
    )
UNION ALL
SELECT
    record.user_id,
    'grant ' || record.seq || ' of ' || record.amount || ' was not made by its entry' AS fault
FROM credit_grants AS record
LEFT JOIN book ON record.user_id = book.user_id AND record.seq = book.seq
WHERE
    record.user_id = any($1::uuid[])
    AND (
        book.type IS NULL
        OR book.type NOT IN ('purchase', 'grant')
        OR book.amount <> record.amount
    )
UNION ALL
SELECT
    user_id,
    'change ' || step || ' of grant ' || grant_seq || ' by seq ' || seq
    || ' is not the sum of the changes' AS fault
FROM changes
WHERE (remaining_after, pinned_after) <> (running_remaining, running_pinned)
UNION ALL
SELECT
    user_id,
    'grant ' || grant_seq || ' was changed by seq ' || seq || ', which is missing' AS fault
FROM changes
WHERE is_orphan
UNION ALL
SELECT
    pins.user_id,
    'hold ' || pins.hold_seq || ' pins ' || pins.credits || ' of grant ' || pins.grant_seq
    || ' and is ' || coalesce(hold.state, 'missing') AS fault
FROM pins
LEFT JOIN credit_holds AS hold
    ON
        pins.user_id = hold.user_id
        AND pins.hold_seq = hold.seq
        -- distributed: AND hold.user_id = any($1::uuid[])
WHERE pins.credits < 0 OR (pins.credits > 0 AND hold.state IS DISTINCT FROM 'held')
UNION ALL
SELECT
    pins.user_id,
    'hold ' || pins.hold_seq || ' of ' || hold.amount || ' pins ' || sum(pins.credits) AS fault
FROM pins
INNER JOIN credit_holds AS hold
    ON
        pins.user_id = hold.user_id
        AND pins.hold_seq = hold.seq
        -- distributed: AND hold.user_id = any($1::uuid[])
GROUP BY pins.user_id, pins.hold_seq, hold.amount
HAVING sum(pins.credits) > hold.amount
UNION ALL
SELECT
    record.user_id,
    'grant ' || record.seq || ' says that reversals returned ' || record.reversed || ', '
    || record.counted || ' of them counted; the reversals say '
    || coalesce(taken_back.credits, 0) + coalesce(counted.credits, 0) || ', '
    || coalesce(counted.credits, 0) AS fault
FROM credit_grants AS record
LEFT JOIN book ON record.user_id = book.user_id AND record.seq = book.seq
LEFT JOIN counted ON book.payment_ref = counted.payment_ref
LEFT JOIN taken_back ON record.user_id = taken_back.user_id AND record.seq = taken_back.related_seq
WHERE
    record.user_id = any($1::uuid[])
    AND (record.reversed, record.counted)
    <> (
        coalesce(taken_back.credits, 0) + coalesce(counted.credits, 0),
        coalesce(counted.credits, 0)
    )
UNION ALL
SELECT
    book.user_id,
    'seq ' || book.seq || ' has tx ' || book.tx || ', below ' || book.earlier_tx
    || ' of the entry before' AS fault
FROM book
WHERE book.tx < book.earlier_tx
UNION ALL
SELECT
    account.user_id,
    'its tx is ' || account.tx || ', below ' || written.tx || ' of what was written last' AS fault
FROM user_credits AS account
INNER JOIN written ON account.user_id = written.user_id
WHERE account.user_id = any($1::uuid[]) AND account.tx < written.tx
UNION ALL
SELECT
    account.user_id,
    'the account says ' || account.top_up_changes || ' changes of top-ups; there are '
    || coalesce(made.changes, 0) || ', the last of them ' || coalesce(made.last_change, 0) AS fault
FROM user_credits AS account
LEFT JOIN top_up_changes AS made ON account.user_id = made.user_id AND made.from_last = 1
WHERE
    account.user_id = any($1::uuid[])
    AND (account.top_up_changes, account.top_up_changes)
    <> (coalesce(made.changes, 0), coalesce(made.last_change, 0))
UNION ALL
SELECT
    coalesce(counts.user_id, made.user_id) AS user_id,
    'top-up is off for ' || coalesce(counts.off, 'nothing') || '; the last change says '
    || coalesce(made.off, 'nothing') AS fault
FROM top_up_counts AS counts
FULL JOIN last_top_up_changes AS made ON counts.user_id = made.user_id
WHERE counts.user_id IS NULL OR made.user_id IS NULL OR counts.off IS DISTINCT FROM made.off
UNION ALL
SELECT
    counts.user_id,
    'the account says that it made ' || counts.requests || ' requests for top-ups; there are '
    || count(asked.number) || ', the last of them ' || coalesce(max(asked.number), 0) AS fault
FROM credit_top_up_counts AS counts
LEFT JOIN asked ON counts.user_id = asked.user_id
WHERE counts.user_id = any($1::uuid[])
GROUP BY counts.user_id, counts.requests
HAVING (counts.requests, counts.requests) <> (count(asked.number), coalesce(max(asked.number), 0))
UNION ALL
SELECT
    counts.user_id,
    'the account says ' || counts.charges || ' top-ups in the month of '
    || coalesce((counts.month AT TIME ZONE 'UTC')::date::text, 'none') || '; there are '
    || count(asked.number) AS fault
FROM credit_top_up_counts AS counts
LEFT JOIN asked
    ON
        counts.user_id = asked.user_id
        AND asked.state = 'succeeded'
        AND counts.month AT TIME ZONE 'UTC' = asked.bought_month
WHERE counts.user_id = any($1::uuid[])
GROUP BY counts.user_id, counts.charges, counts.month
HAVING counts.charges <> count(asked.number)
UNION ALL
SELECT
    asked.user_id,
    'request ' || asked.number || ' for a top-up is ' || asked.state
    || ', which its last change does not say' AS fault
FROM asked
LEFT JOIN top_up_changes AS made
    ON
        asked.user_id = made.user_id
        AND asked.number = made.number
        AND made.from_last_of_it = 1
WHERE
    (asked.state, asked.payment_ref, asked.tries, asked.seq)
    IS DISTINCT FROM (made.state, made.payment_ref, made.tries, made.seq)
UNION ALL
SELECT
    user_id,
    'request ' || number || ' for a top-up is ' || state || '; its payment '
    || coalesce(payment_ref, '') || ' was purchased by seq ' || coalesce(bought_seq::text, 'none')
    || ', and it says ' || coalesce(seq::text, 'none') AS fault
FROM asked
WHERE bought_seq IS DISTINCT FROM seq
