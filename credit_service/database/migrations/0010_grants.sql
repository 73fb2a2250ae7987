-- Credits that expire or have a priority of their own. A grant is the part of a balance that one
-- entry brought; the rest of the balance is the pool. An account without grants is as it was.

-- in_grants is what is left of all grants, and pinned is the part of it that holds have set aside.
-- grants_made counts all grants there ever were, so that nothing need be looked up where there was
-- none. next_lapse is at or before the earliest expire_time of the open grants. Until
-- allowance_until, no allowance is due. An allowance_amount of 0 is none; null is as configured.
ALTER TABLE user_credits
ADD COLUMN in_grants bigint NOT NULL DEFAULT 0,
ADD COLUMN pinned bigint NOT NULL DEFAULT 0,
ADD COLUMN open_grants bigint NOT NULL DEFAULT 0,
ADD COLUMN grants_made bigint NOT NULL DEFAULT 0,
ADD COLUMN next_lapse timestamptz,
ADD COLUMN allowance_until timestamptz,
ADD COLUMN allowance_amount bigint,
ADD COLUMN allowance_period text,
ADD COLUMN allowance_carry_over bigint,
ADD CONSTRAINT pinned_within_grants CHECK (pinned <= in_grants),
ADD CONSTRAINT pinned_within_held CHECK (pinned BETWEEN 0 AND greatest(held, 0)),
-- Credits that no hold has set aside pay a debt before anything else.
ADD CONSTRAINT debt_only_with_grants_all_pinned
CHECK (balance >= in_grants OR in_grants = pinned),
ADD CONSTRAINT open_grants_have_credits
CHECK (open_grants >= 0 AND (open_grants = 0 OR in_grants > 0)),
ADD CONSTRAINT grants_were_made
CHECK (grants_made >= open_grants AND (grants_made > 0 OR in_grants = 0)),
ADD CONSTRAINT lapse_expected_with_open_grants CHECK (open_grants > 0 OR next_lapse IS NULL),
ADD CONSTRAINT allowance_is_complete CHECK (
    num_nulls(allowance_amount, allowance_period, allowance_carry_over) IN (0, 3)
    AND allowance_amount BETWEEN 0 AND 1000000000000
    AND allowance_period IN ('day', 'week', 'month')
    AND allowance_carry_over BETWEEN 0 AND 1000
),
ADD CONSTRAINT grant_times_can_be_shown CHECK (
    next_lapse >= '0001-01-01 00:00:00+00' AND next_lapse < '10000-01-01 00:00:00+00'
    AND allowance_until >= '0001-01-01 00:00:00+00'
    AND allowance_until < '10000-01-01 00:00:00+00'
);

ALTER TABLE credit_policy_changes
ADD COLUMN allowance_amount bigint,
ADD COLUMN allowance_period text,
ADD COLUMN allowance_carry_over bigint;

ALTER TABLE credit_transactions
DROP CONSTRAINT type_is_known,
DROP CONSTRAINT changes_follow_type,
DROP CONSTRAINT key_is_present,
ADD CONSTRAINT type_is_known CHECK (
    type IN (
        'purchase', 'spend', 'refund', 'grant', 'reversal', 'hold', 'capture', 'release', 'expire',
        'adjustment', 'lapse', 'revocation'
    )
),
ADD CONSTRAINT changes_follow_type CHECK (
    CASE
        WHEN type IN ('purchase', 'refund', 'grant')
            THEN balance_change = amount AND held_change = 0
        WHEN type IN ('spend', 'lapse', 'revocation')
            THEN balance_change = -amount AND held_change = 0
        -- A dispute that was won gives back what it took.
        WHEN type IN ('reversal', 'adjustment')
            THEN abs(balance_change) = amount AND held_change = 0
        WHEN type = 'hold' THEN balance_change = 0 AND held_change = amount
        -- A late capture finds nothing held any more.
        WHEN type = 'capture' THEN balance_change = -amount AND held_change <= 0
        ELSE balance_change = 0 AND held_change = -amount
    END
),
ADD CONSTRAINT key_is_present CHECK (
    call IN ('adopted', 'expiry', 'lapse', 'revocation', 'allowance', 'ReversePurchase')
    OR (idempotency_key IS NOT NULL AND length(idempotency_key) BETWEEN 1 AND 128)
);

ALTER TABLE credit_kept_keys
DROP CONSTRAINT call_makes_no_entry,
ADD CONSTRAINT call_makes_no_entry CHECK (
    call IN ('PurchaseCredits', 'CaptureHold', 'ReleaseHold', 'RevokeGrant')
);

-- How many of the credits that a revision took had lapsed or been revoked before, so that they were
-- counted and did not move. What a later revision gives back of them is below zero.
ALTER TABLE credit_reversals
ADD COLUMN counted bigint NOT NULL DEFAULT 0;

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
    REFERENCES user_credits (user_id) ON DELETE CASCADE,
    CONSTRAINT amount_in_range CHECK (amount BETWEEN 1 AND 1000000000000),
    CONSTRAINT remaining_within_amount CHECK (remaining <= amount),
    CONSTRAINT pinned_within_remaining CHECK (pinned BETWEEN 0 AND remaining),
    CONSTRAINT open_with_credits CHECK (NOT open OR remaining > 0),
    CONSTRAINT closed_keeps_only_what_is_pinned CHECK (open OR remaining = pinned),
    CONSTRAINT counted_within_lapsed CHECK (counted BETWEEN 0 AND lapsed),
    CONSTRAINT reversed_within_amount CHECK (reversed BETWEEN 0 AND amount),
    CONSTRAINT priority_in_range CHECK (priority BETWEEN 0 AND 100),
    -- Credits at the priority of the pool and without an end are the pool.
    CONSTRAINT differs_from_the_pool CHECK (expire_time IS NOT NULL OR priority <> 50),
    CONSTRAINT valid_for_a_time CHECK (valid_for_us > 0),
    CONSTRAINT asked_for_one_end CHECK (num_nonnulls(asked_time, valid_for_us) <= 1),
    CONSTRAINT series_has_a_length CHECK (length(series) BETWEEN 1 AND 64),
    CONSTRAINT times_can_be_shown CHECK (
        expire_time >= '0001-01-01 00:00:00+00' AND expire_time < '10000-01-01 00:00:00+00'
        AND asked_time >= '0001-01-01 00:00:00+00' AND asked_time < '10000-01-01 00:00:00+00'
    )
) WITH (fillfactor = 70);

-- The burn order of a user's open grants. No index names remaining or pinned, so that what is drawn
-- changes no index.
CREATE INDEX open_grants ON credit_grants (user_id, priority, expire_time, paid, seq) WHERE open;

-- The order in which a user's grants lapse.
CREATE INDEX open_grants_by_expiry ON credit_grants (user_id, expire_time) WHERE open;

-- Finds the grants whose time has passed, over all users: for the sweeper and the reports.
CREATE INDEX grants_due ON credit_grants (expire_time) WHERE open;

CREATE TRIGGER grants_go_with_their_account
BEFORE DELETE ON credit_grants
FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();

CREATE TRIGGER grants_are_never_truncated
BEFORE TRUNCATE ON credit_grants
FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();

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
    REFERENCES credit_grants (user_id, seq) ON DELETE CASCADE,
    CONSTRAINT step_counts_from_one CHECK (step >= 1),
    CONSTRAINT changed_since_it_was_made CHECK (seq >= grant_seq),
    CONSTRAINT pinned_within_remaining CHECK (pinned_after BETWEEN 0 AND remaining_after),
    CONSTRAINT only_a_hold_pins CHECK (pinned_change = 0 OR hold_seq IS NOT NULL),
    CONSTRAINT time_can_be_shown CHECK (
        expire_after >= '0001-01-01 00:00:00+00' AND expire_after < '10000-01-01 00:00:00+00'
        AND lapsed_at >= '0001-01-01 00:00:00+00' AND lapsed_at < '10000-01-01 00:00:00+00'
    )
);

CREATE INDEX changes_by_grant ON credit_grant_changes (user_id, grant_seq, seq, step);

CREATE INDEX changes_by_hold ON credit_grant_changes (user_id, hold_seq)
WHERE hold_seq IS NOT NULL;

CREATE INDEX changes_by_reversal ON credit_grant_changes (user_id, reversed_seq)
WHERE reversed_seq IS NOT NULL;

-- For reports: credits lapse in the order of time, more or less.
CREATE INDEX changes_by_lapse ON credit_grant_changes USING brin (lapsed_at);

CREATE TRIGGER grant_changes_never_change
BEFORE UPDATE OR DELETE ON credit_grant_changes
FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();

CREATE TRIGGER grant_changes_are_never_truncated
BEFORE TRUNCATE ON credit_grant_changes
FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();

-- Until when a user has had an allowance. It has no foreign key and outlives a deleted user, so
-- that a user who is deleted and created again gets no second one in a period.
CREATE TABLE credit_allowances (
    user_id uuid NOT NULL,
    until timestamptz NOT NULL,
    CONSTRAINT one_allowance_per_user PRIMARY KEY (user_id),
    CONSTRAINT time_can_be_shown
    CHECK (until >= '0001-01-01 00:00:00+00' AND until < '10000-01-01 00:00:00+00')
);

CREATE TRIGGER allowances_are_never_deleted
BEFORE DELETE ON credit_allowances
FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();

CREATE TRIGGER allowances_are_never_truncated
BEFORE TRUNCATE ON credit_allowances
FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();
