-- The book: the given tables widened and extended, every rule a second time as a named constraint.
--
-- Data in the given tables is taken over: balances are kept, entries are numbered in the order of
-- their time, and where a history does not add up to its balance an opening entry makes it so.

-- A timestamp without a zone is read as UTC.
SET LOCAL TIME ZONE 'UTC';

DO $$
DECLARE
    unusable bigint;
    homeless text;
BEGIN
    SELECT count(*) INTO unusable
    FROM credit_transactions
    WHERE
        user_id IS NULL
        OR amount IS NULL
        OR type IS NULL
        OR type NOT IN ('purchase', 'spend', 'refund');
    IF unusable > 0 THEN
        RAISE EXCEPTION
        '% rows of credit_transactions have no user_id, no amount or no type that is known',
        unusable
        USING HINT = 'Complete or delete them, then migrate again.';
    END IF;

    SELECT string_agg(attrelid::regclass || '.' || attname, ', ' ORDER BY attrelid, attnum)
    INTO homeless
    FROM pg_attribute
    WHERE
        attrelid IN ('user_credits'::regclass, 'credit_transactions'::regclass)
        AND attnum > 0
        AND NOT attisdropped
        AND (attrelid, attname) NOT IN (
            ('user_credits'::regclass, 'user_id'),
            ('user_credits'::regclass, 'balance'),
            ('user_credits'::regclass, 'last_updated'),
            ('credit_transactions'::regclass, 'id'),
            ('credit_transactions'::regclass, 'user_id'),
            ('credit_transactions'::regclass, 'type'),
            ('credit_transactions'::regclass, 'amount'),
            ('credit_transactions'::regclass, 'description'),
            ('credit_transactions'::regclass, 'timestamp')
        );
    IF homeless IS NOT NULL THEN
        RAISE EXCEPTION 'the new tables have no place for %', homeless
        USING HINT = 'Move these columns to a table of your own, then migrate again.';
    END IF;
END
$$;

ALTER TABLE user_credits RENAME TO given_user_credits;
ALTER TABLE credit_transactions RENAME TO given_credit_transactions;

-- The account: a running total and the lock of everything that happens to a user. No further
-- index, and room on the page, so that an update stays on its page (heap-only tuples).
CREATE TABLE user_credits (
    user_id uuid NOT NULL,
    balance bigint NOT NULL DEFAULT 0,
    held bigint NOT NULL DEFAULT 0,
    seq bigint NOT NULL DEFAULT 0,
    last_updated timestamptz NOT NULL,
    CONSTRAINT one_account_per_user PRIMARY KEY (user_id),
    CONSTRAINT account_belongs_to_a_user FOREIGN KEY (user_id)
    REFERENCES auth.users (id) ON DELETE CASCADE,
    CONSTRAINT balance_in_range CHECK (balance BETWEEN -1000000000000000 AND 1000000000000000),
    CONSTRAINT held_not_negative CHECK (held >= 0),
    CONSTRAINT seq_not_negative CHECK (seq >= 0)
) WITH (fillfactor = 70);

-- The book itself, append-only. An entry is also the memory of the request that made it, so there
-- is no other table of idempotency keys. seq is assigned under the lock of the account.
--
-- The foreign key points at the account and not at auth.users: with that, the deletion of a user
-- and a batch that writes for the user would wait for each other.
CREATE TABLE credit_transactions (
    user_id uuid NOT NULL,
    seq bigint NOT NULL,
    id text NOT NULL GENERATED ALWAYS AS (user_id::text || '-' || seq::text) STORED,
    type text NOT NULL,
    call text NOT NULL,
    amount bigint NOT NULL,
    requested_amount bigint,
    balance_change bigint NOT NULL,
    held_change bigint NOT NULL,
    balance_after bigint NOT NULL,
    held_after bigint NOT NULL,
    floor bigint,
    description text NOT NULL,
    timestamp timestamptz NOT NULL,
    operation text,
    quantity bigint,
    unit_cost bigint,
    price_version text,
    reference text NOT NULL,
    metadata jsonb,
    related_seq bigint,
    idempotency_key text,
    caller text NOT NULL,
    payment_ref text,
    payment_amount_minor bigint,
    payment_currency text,
    CONSTRAINT one_entry_per_place PRIMARY KEY (user_id, seq),
    CONSTRAINT one_entry_per_key UNIQUE (user_id, idempotency_key),
    CONSTRAINT entry_belongs_to_an_account FOREIGN KEY (user_id)
    REFERENCES user_credits (user_id) ON DELETE CASCADE,
    CONSTRAINT entry_settles_an_entry FOREIGN KEY (user_id, related_seq)
    REFERENCES credit_transactions (user_id, seq),
    CONSTRAINT seq_counts_from_one CHECK (seq >= 1),
    CONSTRAINT type_is_known
    CHECK (type IN ('purchase', 'spend', 'refund', 'grant', 'reversal')),
    CONSTRAINT amount_in_range CHECK (
        amount BETWEEN 1 AND 1000000000000 OR (call = 'adopted' AND amount >= 0)
    ),
    CONSTRAINT changes_follow_type CHECK (
        held_change = 0
        AND balance_change = CASE WHEN type IN ('spend', 'reversal') THEN -amount ELSE amount END
    ),
    CONSTRAINT balance_in_range
    CHECK (balance_after BETWEEN -1000000000000000 AND 1000000000000000),
    CONSTRAINT held_not_negative CHECK (held_after >= 0),
    CONSTRAINT spend_keeps_the_floor CHECK (
        type <> 'spend'
        OR call = 'adopted'
        OR (floor IS NOT NULL AND balance_after - held_after >= floor)
    ),
    CONSTRAINT cost_is_quantity_times_unit_cost CHECK (
        quantity IS NULL
        OR (
            operation IS NOT NULL AND unit_cost IS NOT NULL AND price_version IS NOT NULL
            AND quantity >= 1 AND amount = quantity * unit_cost
        )
    ),
    CONSTRAINT key_is_present CHECK (
        call = 'adopted'
        OR (idempotency_key IS NOT NULL AND length(idempotency_key) BETWEEN 1 AND 128)
    ),
    CONSTRAINT payment_is_complete CHECK (
        num_nulls(payment_ref, payment_amount_minor, payment_currency) IN (0, 3)
        AND (payment_amount_minor IS NULL OR payment_amount_minor >= 0)
    )
);

-- Only refunds stand in it. Without it the deletion of a user would look through all entries of the
-- user once for each of them.
CREATE INDEX entries_by_what_they_settle ON credit_transactions (user_id, related_seq)
WHERE related_seq IS NOT NULL;

-- What was given back of a spend, written with its first refund.
CREATE TABLE credit_refunds (
    user_id uuid NOT NULL,
    spend_seq bigint NOT NULL,
    spent bigint NOT NULL,
    refunded bigint NOT NULL,
    CONSTRAINT one_sum_per_spend PRIMARY KEY (user_id, spend_seq),
    CONSTRAINT refund_gives_back_an_entry FOREIGN KEY (user_id, spend_seq)
    REFERENCES credit_transactions (user_id, seq) ON DELETE CASCADE,
    CONSTRAINT refunds_within_spend CHECK (refunded BETWEEN 1 AND spent)
);

-- Which payment was credited to whom. It has no foreign key and outlives a deleted user, so that a
-- payment is never credited twice.
CREATE TABLE credit_purchases (
    payment_ref text NOT NULL,
    user_id uuid NOT NULL,
    seq bigint NOT NULL,
    amount bigint NOT NULL,
    amount_minor bigint NOT NULL,
    currency text NOT NULL,
    purchased_at timestamptz NOT NULL,
    CONSTRAINT one_purchase_per_payment PRIMARY KEY (payment_ref),
    CONSTRAINT amount_in_range CHECK (amount BETWEEN 1 AND 1000000000000)
);

INSERT INTO user_credits (user_id, balance, last_updated)
SELECT
    user_id,
    coalesce(max(balance), 0) AS balance,
    least(greatest(max(last_updated), max(timestamp), timestamptz 'epoch'), now()) AS last_updated
FROM (
    SELECT
        user_id,
        balance,
        last_updated::timestamptz AS last_updated,
        NULL::timestamptz AS timestamp
    FROM given_user_credits
    UNION ALL
    SELECT
        user_id,
        NULL AS balance,
        NULL AS last_updated,
        timestamp::timestamptz AS timestamp
    FROM given_credit_transactions
) AS known
GROUP BY user_id;

WITH told AS (
    SELECT
        user_id,
        id AS given_id,
        timestamp::timestamptz AS timestamp,
        -- A spend may have been written with either sign; a purchase below zero took credits back.
        CASE WHEN type <> 'spend' AND amount < 0 THEN 'reversal' ELSE type END AS type,
        abs(amount::bigint) AS amount,
        CASE type WHEN 'spend' THEN -abs(amount::bigint) ELSE amount::bigint END AS change,
        coalesce(description, '') AS description
    FROM given_credit_transactions
),

opening AS (
    SELECT
        account.user_id,
        account.balance - coalesce(sum(told.change), 0)::bigint AS change,
        coalesce(min(told.timestamp), account.last_updated) AS timestamp
    FROM user_credits AS account
    LEFT JOIN told ON account.user_id = told.user_id
    GROUP BY account.user_id
    HAVING account.balance <> coalesce(sum(told.change), 0)
),

history AS (
    SELECT
        user_id,
        NULL AS given_id,
        CASE WHEN change > 0 THEN 'grant' ELSE 'reversal' END AS type,
        abs(change) AS amount,
        change,
        'Opening entry: the balance taken over less the history taken over' AS description,
        timestamp,
        0 AS part
    FROM opening
    UNION ALL
    SELECT
        told.user_id,
        told.given_id,
        told.type,
        told.amount,
        told.change,
        told.description,
        -- An entry without a time stands before those that have one.
        coalesce(told.timestamp, min(told.timestamp) OVER account, user_credits.last_updated)
            AS timestamp,
        CASE WHEN told.timestamp IS NULL THEN 1 ELSE 2 END AS part
    FROM told
    INNER JOIN user_credits ON told.user_id = user_credits.user_id
    WINDOW account AS (PARTITION BY told.user_id)
)

INSERT INTO credit_transactions (
    user_id, seq, type, call, amount, balance_change, held_change, balance_after, held_after,
    description, timestamp, reference, metadata, idempotency_key, caller
)
SELECT
    user_id,
    row_number() OVER account AS seq,
    type,
    'adopted' AS call,
    amount,
    change AS balance_change,
    0 AS held_change,
    sum(change) OVER account AS balance_after,
    0 AS held_after,
    description,
    -- A time to come, such as one written in another zone, would hold up those of the next entries.
    least(timestamp, now()) AS timestamp,
    '' AS reference,
    CASE WHEN given_id IS NOT NULL THEN jsonb_build_object('given_id', given_id) END AS metadata,
    -- The old id stays findable, as the key of its entry.
    CASE WHEN length(given_id) <= 122 THEN 'given:' || given_id END AS idempotency_key,
    'migration' AS caller
FROM history
WINDOW account AS (PARTITION BY user_id ORDER BY part, timestamp, given_id);

UPDATE user_credits
SET seq = counted.entries
FROM (
    SELECT
        user_id,
        count(*) AS entries
    FROM credit_transactions
    GROUP BY user_id
) AS counted
WHERE user_credits.user_id = counted.user_id;

DO $$
DECLARE
    dependents text;
BEGIN
    DROP TABLE given_credit_transactions, given_user_credits;
EXCEPTION WHEN dependent_objects_still_exist THEN
    GET STACKED DIAGNOSTICS dependents = PG_EXCEPTION_DETAIL;
    RAISE EXCEPTION 'the given tables cannot be replaced: %', replace(dependents, 'given_', '')
    USING HINT = 'Drop what depends on them, migrate again, and make it anew on the new tables.';
END
$$;

-- Which of these are users. It runs with the rights of its owner, for the service's role has none
-- in the schema auth: Supabase lets nobody give it any, and hides the users by row-level security.
-- Not a view, through which whoever is given rights on it by mistake could delete users.
CREATE FUNCTION credit_users(asked uuid[]) RETURNS SETOF uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ''
AS 'SELECT id FROM auth.users WHERE id = ANY(asked)';

-- The deletion of a user in auth.users reaches accounts and entries through foreign keys, that is
-- from within another trigger. Nothing else may change or remove them, the owner included.
CREATE FUNCTION refuse_to_change_the_book() RETURNS trigger
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    IF TG_OP = 'DELETE' AND pg_trigger_depth() > 1 THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION '% of % is not allowed: the book is append-only', TG_OP, TG_TABLE_NAME
    USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER entries_never_change
BEFORE UPDATE OR DELETE ON credit_transactions
FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();

CREATE TRIGGER entries_are_never_truncated
BEFORE TRUNCATE ON credit_transactions
FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();

CREATE TRIGGER accounts_go_with_their_user
BEFORE DELETE ON user_credits
FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();

CREATE TRIGGER accounts_are_never_truncated
BEFORE TRUNCATE ON user_credits
FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();

CREATE TRIGGER refunds_go_with_their_spend
BEFORE DELETE ON credit_refunds
FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();

CREATE TRIGGER refunds_are_never_truncated
BEFORE TRUNCATE ON credit_refunds
FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();

CREATE TRIGGER purchases_never_change
BEFORE UPDATE OR DELETE ON credit_purchases
FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();

CREATE TRIGGER purchases_are_never_truncated
BEFORE TRUNCATE ON credit_purchases
FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();
