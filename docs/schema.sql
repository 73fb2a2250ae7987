-- The schema as it is after all migrations. Written by scripts/schema; do not edit it.
--
-- Each table is followed by its indexes and triggers, and by the rights of the service's role,
-- credit_service. The owner of the tables, who migrates, is another role. The time limits of the
-- service's role are in docs/deploy.md.

CREATE SCHEMA auth;
GRANT USAGE ON SCHEMA auth TO credit_service;

-- Deleting a user in auth.users reaches accounts and entries through foreign keys, and so from
-- within another trigger. Nothing else may change or delete them, not even the owner.
CREATE FUNCTION refuse_to_change_the_book()
RETURNS trigger
LANGUAGE plpgsql
SET search_path TO ''
AS $$
BEGIN
    IF TG_OP = 'DELETE' AND pg_trigger_depth() > 1 THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION '% of % is not allowed: the book is append-only', TG_OP, TG_TABLE_NAME
    USING ERRCODE = 'restrict_violation';
END
$$;

-- While replicas of two releases run side by side, the older ones know nothing of tx. These
-- triggers number what they write: the account first, then, in the same transaction, its entries.
CREATE FUNCTION credit_number_account()
RETURNS trigger
LANGUAGE plpgsql
SET search_path TO ''
AS $$
BEGIN
    EXECUTE format(
        'SELECT greatest($1, base + pg_current_xact_id()::text::bigint) FROM %I.credit_feed_numbers',
        TG_TABLE_SCHEMA
    ) INTO NEW.tx USING NEW.tx;
    RETURN NEW;
END
$$;

CREATE FUNCTION credit_number_after_account()
RETURNS trigger
LANGUAGE plpgsql
SET search_path TO ''
AS $$
BEGIN
    EXECUTE format('SELECT tx FROM %I.user_credits WHERE user_id = $1', TG_TABLE_SCHEMA)
    INTO NEW.tx USING NEW.user_id;
    -- Without an account it is the foreign key that refuses the row.
    NEW.tx := coalesce(NEW.tx, 0);
    RETURN NEW;
END
$$;

-- Who is a user. The first migration makes this table unless there is one, as on Supabase.
CREATE TABLE auth.users (
    id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT users_pkey PRIMARY KEY (id)
);

GRANT INSERT (id, created_at) ON auth.users TO credit_service;

-- The accounts: one row per user, which is the running total and the lock of everything that
-- happens to the user. There is no further index and room on each page, so that an update stays on
-- its page (heap-only tuples).
--
-- next_hold_expiry is at or before the earliest expiry of the open holds, so that a batch need not
-- look for expired holds. The counters spent_this_... belong to the minute, hour and day in UTC
-- that counted_at lies in.
--
-- in_grants is what is left of all grants of the account, and pinned is the part of it that holds
-- have set aside; balance - in_grants is the pool. grants_made counts all grants there ever were,
-- so that nothing need be looked up where there was none. next_lapse is at or before the earliest
-- expire_time of the open grants. No allowance is due before allowance_until. An allowance_amount
-- of 0 is none; null is as configured.
CREATE TABLE user_credits (
    user_id uuid NOT NULL,
    balance bigint NOT NULL DEFAULT 0,
    held bigint NOT NULL DEFAULT 0,
    seq bigint NOT NULL DEFAULT 0,
    last_updated timestamptz NOT NULL,
    open_holds bigint NOT NULL DEFAULT 0,
    next_hold_expiry timestamptz,
    frozen boolean NOT NULL DEFAULT false,
    min_balance bigint,
    limit_per_minute bigint,
    limit_per_hour bigint,
    limit_per_day bigint,
    counted_at timestamptz,
    spent_this_minute bigint NOT NULL DEFAULT 0,
    spent_this_hour bigint NOT NULL DEFAULT 0,
    spent_this_day bigint NOT NULL DEFAULT 0,
    policy_changes bigint NOT NULL DEFAULT 0,
    in_grants bigint NOT NULL DEFAULT 0,
    pinned bigint NOT NULL DEFAULT 0,
    open_grants bigint NOT NULL DEFAULT 0,
    grants_made bigint NOT NULL DEFAULT 0,
    next_lapse timestamptz,
    allowance_until timestamptz,
    allowance_amount bigint,
    allowance_period text,
    allowance_carry_over bigint,
    alert_below bigint,
    top_up_below bigint,
    top_up_pack text,
    top_up_per_month bigint,
    top_up_changes bigint NOT NULL DEFAULT 0,
    tx bigint NOT NULL,
    CONSTRAINT one_account_per_user PRIMARY KEY (user_id),
    CONSTRAINT account_belongs_to_a_user FOREIGN KEY (user_id)
        REFERENCES auth.users(id) ON DELETE CASCADE,
    CONSTRAINT balance_in_range CHECK (balance >= -1000000000000000
        AND balance <= 1000000000000000),
    CONSTRAINT held_not_negative CHECK (held >= 0),
    CONSTRAINT seq_not_negative CHECK (seq >= 0),
    CONSTRAINT open_holds_not_negative CHECK (open_holds >= 0),
    CONSTRAINT held_only_with_open_holds CHECK ((held = 0) = (open_holds = 0)),
    CONSTRAINT floor_in_range CHECK (min_balance >= -1000000000000
        AND min_balance <= 1000000000000),
    CONSTRAINT limits_are_positive CHECK (limit_per_minute > 0 AND limit_per_hour > 0
        AND limit_per_day > 0),
    CONSTRAINT times_can_be_shown CHECK (last_updated >= '0001-01-01 00:00:00+00'::timestamptz
        AND last_updated < '10000-01-01 00:00:00+00'::timestamptz
        AND next_hold_expiry >= '0001-01-01 00:00:00+00'::timestamptz
        AND next_hold_expiry < '10000-01-01 00:00:00+00'::timestamptz
        AND counted_at >= '0001-01-01 00:00:00+00'::timestamptz
        AND counted_at < '10000-01-01 00:00:00+00'::timestamptz),
    CONSTRAINT pinned_within_grants CHECK (pinned <= in_grants),
    CONSTRAINT pinned_within_held CHECK (pinned >= 0 AND pinned <= GREATEST(held, 0::bigint)),
    CONSTRAINT debt_only_with_grants_all_pinned CHECK (balance >= in_grants OR in_grants = pinned),
    CONSTRAINT open_grants_have_credits CHECK (open_grants >= 0 AND (open_grants = 0
        OR in_grants > 0)),
    CONSTRAINT grants_were_made CHECK (grants_made >= open_grants AND (grants_made > 0
        OR in_grants = 0)),
    CONSTRAINT lapse_expected_with_open_grants CHECK (open_grants > 0 OR next_lapse IS NULL),
    CONSTRAINT allowance_is_complete
        CHECK ((num_nulls(allowance_amount, allowance_period, allowance_carry_over) IN (0, 3))
        AND allowance_amount >= 0 AND allowance_amount <= 1000000000000 AND (allowance_period
        IN ('day', 'week', 'month')) AND allowance_carry_over >= 0
        AND allowance_carry_over <= 1000),
    CONSTRAINT grant_times_can_be_shown CHECK (next_lapse >= '0001-01-01 00:00:00+00'::timestamptz
        AND next_lapse < '10000-01-01 00:00:00+00'::timestamptz
        AND allowance_until >= '0001-01-01 00:00:00+00'::timestamptz
        AND allowance_until < '10000-01-01 00:00:00+00'::timestamptz),
    CONSTRAINT top_up_changes_count_up CHECK (top_up_changes >= 0),
    CONSTRAINT alert_in_range CHECK (alert_below >= -1000000000000
        AND alert_below <= 1000000000000),
    CONSTRAINT top_up_is_complete CHECK ((num_nulls(top_up_below, top_up_pack, top_up_per_month)
        IN (0, 3)) AND top_up_below >= -1000000000000 AND top_up_below <= 1000000000000
        AND length(top_up_pack) >= 1 AND length(top_up_pack) <= 64 AND top_up_per_month >= 1)
) WITH (fillfactor=70);

CREATE TRIGGER accounts_go_with_their_user
    BEFORE DELETE ON user_credits
    FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();
CREATE TRIGGER accounts_are_never_truncated
    BEFORE TRUNCATE ON user_credits
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();
CREATE TRIGGER new_accounts_have_a_number
    BEFORE INSERT ON user_credits
    FOR EACH ROW WHEN (new.tx IS NULL) EXECUTE FUNCTION credit_number_account();
CREATE TRIGGER changed_accounts_have_a_number
    BEFORE UPDATE ON user_credits
    FOR EACH ROW WHEN (new.tx = old.tx AND (new.seq <> old.seq
    OR new.policy_changes <> old.policy_changes)) EXECUTE FUNCTION credit_number_account();

GRANT INSERT, SELECT, UPDATE ON user_credits TO credit_service;

-- The entries, append-only. An entry is also the memory of its idempotency key. seq is assigned
-- under the lock of the account.
--
-- The foreign key refers to the account and not to auth.users, because otherwise the deletion of a
-- user and a batch that writes for this user would wait for each other.
CREATE TABLE credit_transactions (
    user_id uuid NOT NULL,
    seq bigint NOT NULL,
    id text NOT NULL GENERATED ALWAYS AS ((user_id::text || '-') || seq::text) STORED,
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
    hold_seq bigint,
    tx bigint NOT NULL,
    CONSTRAINT one_entry_per_place PRIMARY KEY (user_id, seq),
    CONSTRAINT one_entry_per_key UNIQUE (user_id, idempotency_key),
    CONSTRAINT entry_belongs_to_an_account FOREIGN KEY (user_id)
        REFERENCES user_credits(user_id) ON DELETE CASCADE,
    CONSTRAINT entry_settles_an_entry FOREIGN KEY (user_id, related_seq)
        REFERENCES credit_transactions(user_id, seq),
    CONSTRAINT seq_counts_from_one CHECK (seq >= 1),
    CONSTRAINT amount_in_range CHECK (amount >= 1 AND amount <= 1000000000000 OR call = 'adopted'
        AND amount >= 0),
    CONSTRAINT balance_in_range CHECK (balance_after >= -1000000000000000
        AND balance_after <= 1000000000000000),
    CONSTRAINT held_not_negative CHECK (held_after >= 0),
    CONSTRAINT payment_is_complete
        CHECK ((num_nulls(payment_ref, payment_amount_minor, payment_currency) IN (0, 3))
        AND (payment_amount_minor IS NULL OR payment_amount_minor >= 0)),
    CONSTRAINT spend_keeps_the_floor CHECK ((type NOT IN ('spend', 'hold')) OR call = 'adopted'
        OR floor IS NOT NULL AND (balance_after - held_after) >= floor),
    CONSTRAINT capture_keeps_the_floor CHECK (type <> 'capture' OR balance_change >= held_change
        OR floor IS NOT NULL AND (balance_after - held_after) >= floor),
    CONSTRAINT cost_is_quantity_times_unit_cost CHECK (quantity IS NULL OR operation IS NOT NULL
        AND unit_cost IS NOT NULL AND price_version IS NOT NULL AND quantity >= 1
        AND amount = (quantity * unit_cost)),
    CONSTRAINT hold_is_named CHECK ((hold_seq IS NOT NULL) = (type
        IN ('hold', 'capture', 'release', 'expire'))),
    CONSTRAINT time_can_be_shown CHECK ("timestamp" >= '0001-01-01 00:00:00+00'::timestamptz
        AND "timestamp" < '10000-01-01 00:00:00+00'::timestamptz),
    CONSTRAINT adjustment_is_as_asked CHECK (type <> 'adjustment'
        OR NOT requested_amount IS DISTINCT FROM balance_change AND description <> ''
        AND (floor IS NULL OR balance_change < 0 AND (balance_after - held_after) >= floor)),
    CONSTRAINT adjustments_have_their_call CHECK ((type = 'adjustment') = (call = 'AdjustCredits')),
    CONSTRAINT type_is_known CHECK (type
        IN ('purchase', 'spend', 'refund', 'grant', 'reversal', 'hold', 'capture', 'release', 'expire', 'adjustment', 'lapse', 'revocation')),
    CONSTRAINT changes_follow_type CHECK (CASE
        WHEN type IN ('purchase', 'refund', 'grant') THEN balance_change = amount
            AND held_change = 0
        WHEN type IN ('spend', 'lapse', 'revocation') THEN balance_change = -amount
            AND held_change = 0
        WHEN type IN ('reversal', 'adjustment') THEN abs(balance_change) = amount
            AND held_change = 0
        WHEN type = 'hold' THEN balance_change = 0 AND held_change = amount
        WHEN type = 'capture' THEN balance_change = -amount AND held_change <= 0
        ELSE balance_change = 0 AND held_change = -amount
    END),
    CONSTRAINT key_is_present CHECK ((call
        IN ('adopted', 'expiry', 'lapse', 'revocation', 'allowance', 'ReversePurchase'))
        OR idempotency_key IS NOT NULL AND length(idempotency_key) >= 1
        AND length(idempotency_key) <= 128)
);

CREATE INDEX entries_by_what_they_settle ON credit_transactions (user_id, related_seq)
    WHERE related_seq IS NOT NULL;
CREATE INDEX entries_by_time ON credit_transactions USING brin ("timestamp");
CREATE INDEX entries_by_tx ON credit_transactions (tx, user_id, seq);

CREATE TRIGGER entries_never_change
    BEFORE DELETE OR UPDATE ON credit_transactions
    FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();
CREATE TRIGGER entries_are_never_truncated
    BEFORE TRUNCATE ON credit_transactions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();
CREATE TRIGGER entries_have_a_number
    BEFORE INSERT ON credit_transactions
    FOR EACH ROW WHEN (new.tx IS NULL) EXECUTE FUNCTION credit_number_after_account();

GRANT INSERT, SELECT ON credit_transactions TO credit_service;

-- How much of a spend or capture was refunded; written with its first refund.
CREATE TABLE credit_refunds (
    user_id uuid NOT NULL,
    spend_seq bigint NOT NULL,
    spent bigint NOT NULL,
    refunded bigint NOT NULL,
    CONSTRAINT one_sum_per_spend PRIMARY KEY (user_id, spend_seq),
    CONSTRAINT refund_gives_back_an_entry FOREIGN KEY (user_id, spend_seq)
        REFERENCES credit_transactions(user_id, seq) ON DELETE CASCADE,
    CONSTRAINT refunds_within_spend CHECK (refunded >= 1 AND refunded <= spent)
);

CREATE TRIGGER refunds_go_with_their_spend
    BEFORE DELETE ON credit_refunds
    FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();
CREATE TRIGGER refunds_are_never_truncated
    BEFORE TRUNCATE ON credit_refunds
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();

GRANT INSERT, SELECT, UPDATE ON credit_refunds TO credit_service;

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
    CONSTRAINT amount_in_range CHECK (amount >= 1 AND amount <= 1000000000000)
);

CREATE TRIGGER purchases_never_change
    BEFORE DELETE OR UPDATE ON credit_purchases
    FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();
CREATE TRIGGER purchases_are_never_truncated
    BEFORE TRUNCATE ON credit_purchases
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();

GRANT INSERT, SELECT ON credit_purchases TO credit_service;

-- The holds in their present state. The entry at seq made the hold, the one at settled_seq ended
-- it, and the one at captured_seq captured it, in time or late.
CREATE TABLE credit_holds (
    user_id uuid NOT NULL,
    seq bigint NOT NULL,
    state text NOT NULL,
    amount bigint NOT NULL,
    captured bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    operation text,
    quantity bigint,
    unit_cost bigint,
    price_version text,
    reference text NOT NULL,
    settled_seq bigint,
    captured_seq bigint,
    CONSTRAINT one_hold_per_entry PRIMARY KEY (user_id, seq),
    CONSTRAINT hold_belongs_to_an_account FOREIGN KEY (user_id)
        REFERENCES user_credits(user_id) ON DELETE CASCADE,
    CONSTRAINT state_is_known CHECK (state IN ('held', 'captured', 'released', 'expired')),
    CONSTRAINT amount_in_range CHECK (amount >= 1 AND amount <= 1000000000000),
    CONSTRAINT settled_once CHECK ((state = 'held') = (settled_seq IS NULL)),
    CONSTRAINT captured_when_said CHECK (CASE state
        WHEN 'captured' THEN captured >= 1 AND NOT captured_seq IS DISTINCT FROM settled_seq
        WHEN 'expired' THEN (captured >= 1) = (captured_seq IS NOT NULL)
        ELSE captured = 0 AND captured_seq IS NULL
    END),
    CONSTRAINT life_is_limited CHECK (expires_at <= (created_at + '72:00:00'::interval)),
    CONSTRAINT times_can_be_shown CHECK (created_at >= '0001-01-01 00:00:00+00'::timestamptz
        AND created_at < '10000-01-01 00:00:00+00'::timestamptz
        AND expires_at >= '0001-01-01 00:00:00+00'::timestamptz
        AND expires_at < '10000-01-01 00:00:00+00'::timestamptz)
);

CREATE INDEX open_holds ON credit_holds (user_id, expires_at) WHERE state = 'held';
CREATE INDEX open_holds_by_expiry ON credit_holds (expires_at) WHERE state = 'held';

CREATE TRIGGER holds_go_with_their_account
    BEFORE DELETE ON credit_holds
    FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();
CREATE TRIGGER holds_are_never_truncated
    BEFORE TRUNCATE ON credit_holds
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();

GRANT INSERT, SELECT, UPDATE ON credit_holds TO credit_service;

-- Who changed what an account may do, and when. Append-only.
CREATE TABLE credit_policy_changes (
    user_id uuid NOT NULL,
    change bigint NOT NULL,
    changed_at timestamptz NOT NULL,
    caller text NOT NULL,
    frozen boolean NOT NULL,
    min_balance bigint,
    limit_per_minute bigint,
    limit_per_hour bigint,
    limit_per_day bigint,
    allowance_amount bigint,
    allowance_period text,
    allowance_carry_over bigint,
    alert_below bigint,
    top_up_below bigint,
    top_up_pack text,
    top_up_per_month bigint,
    tx bigint NOT NULL,
    CONSTRAINT one_change_per_place PRIMARY KEY (user_id, change),
    CONSTRAINT change_belongs_to_an_account FOREIGN KEY (user_id)
        REFERENCES user_credits(user_id) ON DELETE CASCADE
);

CREATE INDEX policy_changes_by_tx ON credit_policy_changes (tx, user_id, change);

CREATE TRIGGER policy_changes_never_change
    BEFORE DELETE OR UPDATE ON credit_policy_changes
    FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();
CREATE TRIGGER policy_changes_are_never_truncated
    BEFORE TRUNCATE ON credit_policy_changes
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();
CREATE TRIGGER policy_changes_have_a_number
    BEFORE INSERT ON credit_policy_changes
    FOR EACH ROW WHEN (new.tx IS NULL) EXECUTE FUNCTION credit_number_after_account();

GRANT INSERT, SELECT ON credit_policy_changes TO credit_service;

-- Every revision of every refund and dispute; the highest revision of each counts. Append-only. It
-- has no foreign key and outlives a deleted user.
--
-- opens_ref is the reversal_ref on the row that was first recorded under it, and null on the
-- others. It is unique, so that two payments cannot share a refund or dispute.
--
-- counted says how many of the credits that a revision took had lapsed or been revoked before, so
-- that they did not move. What a later revision gives back of them is below zero.
CREATE TABLE credit_reversals (
    reversal_ref text NOT NULL,
    revision bigint NOT NULL,
    payment_ref text NOT NULL,
    user_id uuid NOT NULL,
    seq bigint,
    reversed_minor bigint NOT NULL,
    paid_minor bigint NOT NULL,
    currency text NOT NULL,
    reason text NOT NULL,
    recorded_at timestamptz NOT NULL,
    caller text NOT NULL,
    opens_ref text,
    counted bigint NOT NULL DEFAULT 0,
    CONSTRAINT one_record_per_revision PRIMARY KEY (reversal_ref, revision),
    CONSTRAINT one_payment_per_reversal UNIQUE (opens_ref),
    CONSTRAINT revision_counts_from_one CHECK (revision >= 1),
    CONSTRAINT money_in_range CHECK (paid_minor >= 1 AND paid_minor <= 1000000000000
        AND reversed_minor >= 0 AND reversed_minor <= 1000000000000),
    CONSTRAINT opens_its_own_ref CHECK (opens_ref = reversal_ref),
    CONSTRAINT time_can_be_shown CHECK (recorded_at >= '0001-01-01 00:00:00+00'::timestamptz
        AND recorded_at < '10000-01-01 00:00:00+00'::timestamptz)
);

CREATE INDEX reversals_by_payment ON credit_reversals (payment_ref);

CREATE TRIGGER reversals_never_change
    BEFORE DELETE OR UPDATE ON credit_reversals
    FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();
CREATE TRIGGER reversals_are_never_truncated
    BEFORE TRUNCATE ON credit_reversals
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();

GRANT INSERT, SELECT ON credit_reversals TO credit_service;

-- The idempotency keys of calls that were answered with the entry of another call: the release of a
-- hold that had ended, or a purchase whose payment had been credited. Every other key is in its
-- entry. Append-only.
CREATE TABLE credit_kept_keys (
    user_id uuid NOT NULL,
    key text NOT NULL,
    seq bigint NOT NULL,
    call text NOT NULL,
    CONSTRAINT one_answer_per_key PRIMARY KEY (user_id, key),
    CONSTRAINT key_belongs_to_an_account FOREIGN KEY (user_id)
        REFERENCES user_credits(user_id) ON DELETE CASCADE,
    CONSTRAINT seq_counts_from_one CHECK (seq >= 1),
    CONSTRAINT key_has_a_length CHECK (length(key) >= 1 AND length(key) <= 128),
    CONSTRAINT call_makes_no_entry CHECK (call
        IN ('PurchaseCredits', 'CaptureHold', 'ReleaseHold', 'RevokeGrant'))
);

CREATE TRIGGER kept_keys_never_change
    BEFORE DELETE OR UPDATE ON credit_kept_keys
    FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();
CREATE TRIGGER kept_keys_are_never_truncated
    BEFORE TRUNCATE ON credit_kept_keys
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();

GRANT INSERT, SELECT ON credit_kept_keys TO credit_service;

-- The grants in their present state. The entry at seq made the grant. Spends and holds draw on open
-- ones. A closed one is used up or revoked, or its time was settled; it keeps what is pinned.
--
-- asked_time and valid_for_us are the expiry and the lifetime in microseconds as they were asked
-- for. lapsed counts its credits that lapsed or were revoked, and counted those of them that
-- reversals of its purchase have counted. reversed is what these reversals return: counted and
-- moved credits.
CREATE TABLE credit_grants (
    user_id uuid NOT NULL,
    seq bigint NOT NULL,
    amount bigint NOT NULL,
    remaining bigint NOT NULL,
    pinned bigint NOT NULL,
    priority bigint NOT NULL,
    expire_time timestamptz,
    asked_time timestamptz,
    valid_for_us bigint,
    paid boolean NOT NULL,
    series text,
    revoked boolean NOT NULL,
    open boolean NOT NULL,
    lapsed bigint NOT NULL,
    counted bigint NOT NULL,
    reversed bigint NOT NULL,
    CONSTRAINT one_grant_per_entry PRIMARY KEY (user_id, seq),
    CONSTRAINT grant_belongs_to_an_account FOREIGN KEY (user_id)
        REFERENCES user_credits(user_id) ON DELETE CASCADE,
    CONSTRAINT amount_in_range CHECK (amount >= 1 AND amount <= 1000000000000),
    CONSTRAINT remaining_within_amount CHECK (remaining <= amount),
    CONSTRAINT pinned_within_remaining CHECK (pinned >= 0 AND pinned <= remaining),
    CONSTRAINT open_with_credits CHECK (NOT open OR remaining > 0),
    CONSTRAINT closed_keeps_only_what_is_pinned CHECK (open OR remaining = pinned),
    CONSTRAINT counted_within_lapsed CHECK (counted >= 0 AND counted <= lapsed),
    CONSTRAINT reversed_within_amount CHECK (reversed >= 0 AND reversed <= amount),
    CONSTRAINT priority_in_range CHECK (priority >= 0 AND priority <= 100),
    CONSTRAINT differs_from_the_pool CHECK (expire_time IS NOT NULL OR priority <> 50),
    CONSTRAINT valid_for_a_time CHECK (valid_for_us > 0),
    CONSTRAINT asked_for_one_end CHECK (num_nonnulls(asked_time, valid_for_us) <= 1),
    CONSTRAINT series_has_a_length CHECK (length(series) >= 1 AND length(series) <= 64),
    CONSTRAINT times_can_be_shown CHECK (expire_time >= '0001-01-01 00:00:00+00'::timestamptz
        AND expire_time < '10000-01-01 00:00:00+00'::timestamptz
        AND asked_time >= '0001-01-01 00:00:00+00'::timestamptz
        AND asked_time < '10000-01-01 00:00:00+00'::timestamptz)
) WITH (fillfactor=70);

CREATE INDEX open_grants ON credit_grants (user_id, priority, expire_time, paid, seq) WHERE open;
CREATE INDEX open_grants_by_expiry ON credit_grants (user_id, expire_time) WHERE open;
CREATE INDEX grants_due_in_order ON credit_grants (expire_time, user_id, seq) WHERE open;

CREATE TRIGGER grants_go_with_their_account
    BEFORE DELETE ON credit_grants
    FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();
CREATE TRIGGER grants_are_never_truncated
    BEFORE TRUNCATE ON credit_grants
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();

GRANT INSERT, SELECT, UPDATE ON credit_grants TO credit_service;

-- Every change of a grant, append-only: a grant is the sum of its changes, and what a hold has
-- pinned is the sum of its own. The entry at seq made the change; step is its place among the
-- changes that this entry made. lapsed_at is when the credits lapsed, on the changes that lapses
-- made. reversed_seq is the purchase whose reversals took or gave back the credits.
CREATE TABLE credit_grant_changes (
    user_id uuid NOT NULL,
    seq bigint NOT NULL,
    step bigint NOT NULL,
    grant_seq bigint NOT NULL,
    hold_seq bigint,
    remaining_change bigint NOT NULL,
    pinned_change bigint NOT NULL,
    remaining_after bigint NOT NULL,
    pinned_after bigint NOT NULL,
    expire_after timestamptz,
    lapsed_at timestamptz,
    reversed_seq bigint,
    CONSTRAINT one_grant_change_per_step PRIMARY KEY (user_id, seq, step),
    CONSTRAINT change_belongs_to_a_grant FOREIGN KEY (user_id, grant_seq)
        REFERENCES credit_grants(user_id, seq) ON DELETE CASCADE,
    CONSTRAINT step_counts_from_one CHECK (step >= 1),
    CONSTRAINT changed_since_it_was_made CHECK (seq >= grant_seq),
    CONSTRAINT pinned_within_remaining CHECK (pinned_after >= 0
        AND pinned_after <= remaining_after),
    CONSTRAINT only_a_hold_pins CHECK (pinned_change = 0 OR hold_seq IS NOT NULL),
    CONSTRAINT time_can_be_shown CHECK (expire_after >= '0001-01-01 00:00:00+00'::timestamptz
        AND expire_after < '10000-01-01 00:00:00+00'::timestamptz
        AND lapsed_at >= '0001-01-01 00:00:00+00'::timestamptz
        AND lapsed_at < '10000-01-01 00:00:00+00'::timestamptz)
);

CREATE INDEX changes_by_grant ON credit_grant_changes (user_id, grant_seq, seq, step);
CREATE INDEX changes_by_hold ON credit_grant_changes (user_id, hold_seq)
    WHERE hold_seq IS NOT NULL;
CREATE INDEX changes_by_reversal ON credit_grant_changes (user_id, reversed_seq)
    WHERE reversed_seq IS NOT NULL;
CREATE INDEX changes_by_lapse ON credit_grant_changes USING brin (lapsed_at);

CREATE TRIGGER grant_changes_never_change
    BEFORE DELETE OR UPDATE ON credit_grant_changes
    FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();
CREATE TRIGGER grant_changes_are_never_truncated
    BEFORE TRUNCATE ON credit_grant_changes
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();

GRANT INSERT, SELECT ON credit_grant_changes TO credit_service;

-- Until when a user has had an allowance. It has no foreign key and outlives a deleted user, so
-- that a user who is deleted and created again gets no second one in a period.
CREATE TABLE credit_allowances (
    user_id uuid NOT NULL,
    until timestamptz NOT NULL,
    CONSTRAINT one_allowance_per_user PRIMARY KEY (user_id),
    CONSTRAINT time_can_be_shown CHECK (until >= '0001-01-01 00:00:00+00'::timestamptz
        AND until < '10000-01-01 00:00:00+00'::timestamptz)
);

CREATE TRIGGER allowances_are_never_deleted
    BEFORE DELETE ON credit_allowances
    FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();
CREATE TRIGGER allowances_are_never_truncated
    BEFORE TRUNCATE ON credit_allowances
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();

GRANT INSERT, SELECT, UPDATE ON credit_allowances TO credit_service;

-- The owner's one row, which says what tx numbers are. A number is the id of a transaction plus an
-- offset. Ids are of one server and one timeline: after a failover that lost commits, and on
-- another server, ids are given out again. So writers add leap for each timeline since, until the
-- owner has moved the offset; a leap is more than the number of ids that any server gives out.
CREATE TABLE credit_feed (
    id bigint NOT NULL,
    feed_id uuid NOT NULL,
    feed_offset bigint NOT NULL,
    leap bigint NOT NULL,
    system_identifier bigint NOT NULL,
    timeline bigint NOT NULL,
    CONSTRAINT one_feed PRIMARY KEY (id),
    CONSTRAINT no_other_feed CHECK (id = 1)
);

GRANT SELECT ON credit_feed TO credit_service;

-- What the owner made known to readers when the offset moved: entries that they have read may be
-- gone. Append-only.
CREATE TABLE credit_feed_advances (
    number bigint NOT NULL,
    tx bigint NOT NULL,
    advanced_at timestamptz NOT NULL,
    reason text NOT NULL,
    CONSTRAINT one_advance_per_number PRIMARY KEY (number),
    CONSTRAINT advances_in_order UNIQUE (tx),
    CONSTRAINT number_counts_from_one CHECK (number >= 1)
);

CREATE TRIGGER advances_never_change
    BEFORE DELETE OR UPDATE ON credit_feed_advances
    FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();
CREATE TRIGGER advances_are_never_truncated
    BEFORE TRUNCATE ON credit_feed_advances
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();

GRANT SELECT ON credit_feed_advances TO credit_service;

-- The one process that sends. Every change of hands counts fence up.
CREATE TABLE credit_relay_lease (
    id bigint NOT NULL,
    fence bigint NOT NULL,
    holder text NOT NULL,
    until timestamptz NOT NULL,
    CONSTRAINT one_lease PRIMARY KEY (id),
    CONSTRAINT only_one CHECK (id = 1)
);

GRANT SELECT, UPDATE ON credit_relay_lease TO credit_service;

-- How far each reader has come in the feed; a reader is an endpoint or what makes alerts. Only the
-- process whose fence is here may move it.
CREATE TABLE credit_relay_readers (
    reader text NOT NULL,
    fence bigint NOT NULL,
    tx bigint NOT NULL,
    user_id uuid NOT NULL,
    kind bigint NOT NULL,
    number bigint NOT NULL,
    moved_at timestamptz NOT NULL,
    CONSTRAINT one_place_per_reader PRIMARY KEY (reader),
    CONSTRAINT reader_has_a_name CHECK (length(reader) >= 1 AND length(reader) <= 100)
) WITH (fillfactor=50);

GRANT INSERT, SELECT, UPDATE ON credit_relay_readers TO credit_service;

-- Events that an endpoint did not take while it took others, and all later events of the same user:
-- places in the feed, not what is in them. Only the first of a user that is not dead is tried, so
-- only it has a next_try. One that was tried for too long is dead: it is listed, and is sent again
-- when an operator asks for it.
CREATE TABLE credit_parked_events (
    endpoint text NOT NULL,
    user_id uuid NOT NULL,
    tx bigint NOT NULL,
    kind bigint NOT NULL,
    number bigint NOT NULL,
    type text NOT NULL,
    parked_at timestamptz NOT NULL,
    tries bigint NOT NULL,
    next_try timestamptz,
    problem text NOT NULL,
    dead_at timestamptz,
    CONSTRAINT parked_once PRIMARY KEY (endpoint, user_id, tx, kind, number),
    CONSTRAINT tries_count_up CHECK (tries >= 0),
    CONSTRAINT dead_is_not_tried CHECK (dead_at IS NULL OR next_try IS NULL)
);

CREATE INDEX live_parked_events ON credit_parked_events (endpoint, user_id, tx, kind, number)
    WHERE dead_at IS NULL;
CREATE INDEX due_parked_events ON credit_parked_events (endpoint, next_try)
    WHERE next_try IS NOT NULL;
CREATE INDEX dead_parked_events ON credit_parked_events (endpoint, dead_at, tx, user_id)
    WHERE dead_at IS NOT NULL;

GRANT DELETE, INSERT, SELECT, UPDATE ON credit_parked_events TO credit_service;

-- Alerts, each an item of the feed: append-only. alert counts those of its user.
CREATE TABLE credit_alerts (
    user_id uuid NOT NULL,
    alert bigint NOT NULL,
    tx bigint NOT NULL,
    type text NOT NULL,
    alerted_at timestamptz NOT NULL,
    data jsonb NOT NULL,
    CONSTRAINT one_alert_per_number PRIMARY KEY (user_id, alert),
    CONSTRAINT alert_belongs_to_an_account FOREIGN KEY (user_id)
        REFERENCES user_credits(user_id) ON DELETE CASCADE,
    CONSTRAINT alert_counts_from_one CHECK (alert >= 1)
);

CREATE INDEX alerts_in_feed_order ON credit_alerts (tx, user_id, alert);

CREATE TRIGGER alerts_never_change
    BEFORE DELETE OR UPDATE ON credit_alerts
    FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();
CREATE TRIGGER alerts_are_never_truncated
    BEFORE TRUNCATE ON credit_alerts
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();

GRANT INSERT, SELECT ON credit_alerts TO credit_service;

-- What was last announced of accounts that are low or depleted; the others have no row. The
-- waiting_ columns are a better state, which is compared when the cool-down since the alert has
-- ended.
CREATE TABLE credit_alert_states (
    user_id uuid NOT NULL,
    level text NOT NULL,
    cools_until timestamptz NOT NULL,
    waiting_tx bigint,
    waiting_is_policy boolean,
    waiting_number bigint,
    waiting_time timestamptz,
    waiting_balance bigint,
    waiting_held bigint,
    waiting_floor bigint,
    waiting_alert_below bigint,
    CONSTRAINT one_alert_state_per_account PRIMARY KEY (user_id),
    CONSTRAINT alert_state_belongs_to_an_account FOREIGN KEY (user_id)
        REFERENCES user_credits(user_id) ON DELETE CASCADE,
    CONSTRAINT level_is_known CHECK (level IN ('low', 'depleted')),
    CONSTRAINT what_waits_is_complete
        CHECK (num_nulls(waiting_tx, waiting_is_policy, waiting_number, waiting_time, waiting_balance, waiting_held, waiting_floor)
        IN (0, 7))
);

CREATE INDEX waiting_alert_states ON credit_alert_states (cools_until)
    WHERE waiting_tx IS NOT NULL;

GRANT DELETE, INSERT, SELECT, UPDATE ON credit_alert_states TO credit_service;

-- Which expiry of a grant was announced last.
CREATE TABLE credit_expiring_alerts (
    user_id uuid NOT NULL,
    seq bigint NOT NULL,
    expire_time timestamptz NOT NULL,
    CONSTRAINT one_expiring_alert_per_grant PRIMARY KEY (user_id, seq),
    CONSTRAINT expiring_alert_is_of_a_grant FOREIGN KEY (user_id, seq)
        REFERENCES credit_grants(user_id, seq) ON DELETE CASCADE
);

GRANT INSERT, SELECT, UPDATE ON credit_expiring_alerts TO credit_service;

-- The requests in their present state. number counts those of an account from 1. seq is that of the
-- purchase entry. A payment belongs to one request.
CREATE TABLE credit_top_ups (
    user_id uuid NOT NULL,
    number bigint NOT NULL,
    pack text NOT NULL,
    state text NOT NULL,
    payment_ref text,
    tries bigint NOT NULL,
    reason text NOT NULL,
    link text NOT NULL,
    created_at timestamptz NOT NULL,
    changed_at timestamptz NOT NULL,
    seq bigint,
    CONSTRAINT one_request_per_number PRIMARY KEY (user_id, number),
    CONSTRAINT one_top_up_per_payment UNIQUE (payment_ref),
    CONSTRAINT request_belongs_to_an_account FOREIGN KEY (user_id)
        REFERENCES user_credits(user_id) ON DELETE CASCADE,
    CONSTRAINT number_counts_from_one CHECK (number >= 1),
    CONSTRAINT pack_has_a_length CHECK (length(pack) >= 1 AND length(pack) <= 64),
    CONSTRAINT state_is_known CHECK (state IN ('open', 'succeeded', 'failed', 'not_needed')),
    CONSTRAINT payment_ref_has_a_length CHECK (length(payment_ref) >= 1
        AND length(payment_ref) <= 255),
    CONSTRAINT tries_count_up CHECK (tries >= 0),
    CONSTRAINT reason_has_a_length CHECK (length(reason) <= 500),
    CONSTRAINT link_has_a_length CHECK (length(link) <= 2048),
    CONSTRAINT failure_has_a_reason CHECK (tries = 0 AND (state NOT IN ('failed', 'not_needed'))
        OR reason <> ''),
    CONSTRAINT times_rise CHECK (changed_at >= created_at),
    CONSTRAINT success_is_a_purchase CHECK ((state = 'succeeded') = (seq IS NOT NULL)
        AND (seq IS NULL OR seq >= 1 AND payment_ref IS NOT NULL)),
    CONSTRAINT one_open_top_up_per_account EXCLUDE (user_id WITH =) WHERE (state = 'open')
);

CREATE TRIGGER top_ups_go_with_their_account
    BEFORE DELETE ON credit_top_ups
    FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();
CREATE TRIGGER top_ups_are_never_truncated
    BEFORE TRUNCATE ON credit_top_ups
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();

GRANT INSERT, SELECT, UPDATE ON credit_top_ups TO credit_service;

-- What decides whether an account may ask, beside its balance and policy. requests is how many it
-- ever made. failures counts since the last success, other purchase or change of the policy. off
-- says why top-up is off. charges is how many top-ups were purchased in the month of UTC that
-- begins at month.
CREATE TABLE credit_top_up_counts (
    user_id uuid NOT NULL,
    requests bigint NOT NULL,
    failures bigint NOT NULL,
    off text,
    month timestamptz,
    charges bigint NOT NULL,
    CONSTRAINT one_row_per_account PRIMARY KEY (user_id),
    CONSTRAINT counts_belong_to_an_account FOREIGN KEY (user_id)
        REFERENCES user_credits(user_id) ON DELETE CASCADE,
    CONSTRAINT requests_count_up CHECK (requests >= 0),
    CONSTRAINT failures_count_up CHECK (failures >= 0),
    CONSTRAINT reason_is_known CHECK (off IN ('failures', 'reversal')),
    CONSTRAINT charges_are_of_a_month CHECK (charges >= 0 AND (charges = 0) = (month IS NULL))
);

CREATE TRIGGER top_up_counts_go_with_their_account
    BEFORE DELETE ON credit_top_up_counts
    FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();
CREATE TRIGGER top_up_counts_are_never_truncated
    BEFORE TRUNCATE ON credit_top_up_counts
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();

GRANT INSERT, SELECT, UPDATE ON credit_top_up_counts TO credit_service;

-- Every change of the top-ups of an account, with the request as the change left it. change counts
-- those of an account from 1, and tx is its place in the feed. off is why top-up is off after it.
-- Append-only.
CREATE TABLE credit_top_up_changes (
    user_id uuid NOT NULL,
    change bigint NOT NULL,
    kind text NOT NULL,
    changed_at timestamptz NOT NULL,
    caller text NOT NULL,
    off text,
    number bigint,
    pack text,
    state text,
    payment_ref text,
    tries bigint,
    reason text,
    link text,
    created_at timestamptz,
    seq bigint,
    tx bigint NOT NULL,
    CONSTRAINT one_top_up_change_per_place PRIMARY KEY (user_id, change),
    CONSTRAINT change_belongs_to_an_account FOREIGN KEY (user_id)
        REFERENCES user_credits(user_id) ON DELETE CASCADE,
    CONSTRAINT change_counts_from_one CHECK (change >= 1),
    CONSTRAINT kind_is_known CHECK (kind
        IN ('requested', 'noted', 'failed', 'succeeded', 'not_needed', 'turned_off', 'turned_on')),
    CONSTRAINT change_is_of_a_request
        CHECK (num_nulls(number, pack, state, tries, reason, link, created_at) =
    CASE
        WHEN kind = 'turned_on' THEN 7
        ELSE 0
    END)
);

CREATE INDEX top_up_changes_in_feed_order ON credit_top_up_changes (tx, user_id, change);

CREATE TRIGGER top_up_changes_never_change
    BEFORE DELETE OR UPDATE ON credit_top_up_changes
    FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();
CREATE TRIGGER top_up_changes_are_never_truncated
    BEFORE TRUNCATE ON credit_top_up_changes
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();

GRANT INSERT, SELECT ON credit_top_up_changes TO credit_service;

-- Which migrations were applied.
CREATE TABLE credit_migrations (
    version bigint NOT NULL,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT credit_migrations_pkey PRIMARY KEY (version)
);

GRANT SELECT ON credit_migrations TO credit_service;

-- Which of these ids are users. It runs with the rights of its owner, because on Supabase the
-- service's role cannot be given any in the schema auth, and row-level security hides the users. It
-- is not a view, because a role with rights on a view by mistake could delete users through it.
CREATE FUNCTION credit_users(asked uuid[])
RETURNS SETOF uuid
LANGUAGE plpgsql
STABLE SECURITY DEFINER
SET search_path TO ''
AS $$
BEGIN
    RETURN QUERY SELECT id FROM auth.users WHERE id = ANY(asked);
END
$$;

REVOKE ALL ON FUNCTION credit_users(uuid[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION credit_users(uuid[]) TO credit_service;
