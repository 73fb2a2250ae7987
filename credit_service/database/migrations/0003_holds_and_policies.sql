-- Holds, and what an account may do: frozen, a floor of its own, limits on what it spends.

-- next_hold_expiry is at or before the earliest expiry of the account's open holds, so that a batch
-- need not look for holds whose time has passed. The counters belong to the windows (minute, hour,
-- day of UTC) that counted_at lies in.
ALTER TABLE user_credits
ADD COLUMN open_holds bigint NOT NULL DEFAULT 0,
ADD COLUMN next_hold_expiry timestamptz,
ADD COLUMN frozen boolean NOT NULL DEFAULT false,
ADD COLUMN min_balance bigint,
ADD COLUMN limit_per_minute bigint,
ADD COLUMN limit_per_hour bigint,
ADD COLUMN limit_per_day bigint,
ADD COLUMN counted_at timestamptz,
ADD COLUMN spent_this_minute bigint NOT NULL DEFAULT 0,
ADD COLUMN spent_this_hour bigint NOT NULL DEFAULT 0,
ADD COLUMN spent_this_day bigint NOT NULL DEFAULT 0,
ADD COLUMN policy_changes bigint NOT NULL DEFAULT 0,
ADD CONSTRAINT open_holds_not_negative CHECK (open_holds >= 0),
ADD CONSTRAINT held_only_with_open_holds CHECK ((held = 0) = (open_holds = 0)),
ADD CONSTRAINT floor_in_range CHECK (min_balance BETWEEN -1000000000000 AND 1000000000000),
ADD CONSTRAINT limits_are_positive
CHECK (limit_per_minute > 0 AND limit_per_hour > 0 AND limit_per_day > 0);

ALTER TABLE credit_transactions
ADD COLUMN hold_seq bigint,
DROP CONSTRAINT type_is_known,
DROP CONSTRAINT changes_follow_type,
DROP CONSTRAINT spend_keeps_the_floor,
DROP CONSTRAINT cost_is_quantity_times_unit_cost,
DROP CONSTRAINT key_is_present,
ADD CONSTRAINT type_is_known CHECK (
    type IN (
        'purchase', 'spend', 'refund', 'grant', 'reversal', 'hold', 'capture', 'release', 'expire'
    )
),
ADD CONSTRAINT changes_follow_type CHECK (
    CASE
        WHEN type IN ('purchase', 'refund', 'grant')
            THEN balance_change = amount AND held_change = 0
        WHEN type IN ('spend', 'reversal') THEN balance_change = -amount AND held_change = 0
        WHEN type = 'hold' THEN balance_change = 0 AND held_change = amount
        -- A late capture finds nothing held any more.
        WHEN type = 'capture' THEN balance_change = -amount AND held_change <= 0
        ELSE balance_change = 0 AND held_change = -amount
    END
),
ADD CONSTRAINT spend_keeps_the_floor CHECK (
    type NOT IN ('spend', 'hold')
    OR call = 'adopted'
    OR (floor IS NOT null AND balance_after - held_after >= floor)
),
-- Where a capture met the floor, with overage or late, it keeps it too.
ADD CONSTRAINT capture_keeps_the_floor CHECK (
    type <> 'capture'
    OR balance_change >= held_change
    OR (floor IS NOT null AND balance_after - held_after >= floor)
),
ADD CONSTRAINT cost_is_quantity_times_unit_cost CHECK (
    quantity IS null
    OR (
        operation IS NOT null AND unit_cost IS NOT null AND price_version IS NOT null
        AND quantity >= 1 AND amount = quantity * unit_cost
    )
),
ADD CONSTRAINT key_is_present CHECK (
    call IN ('adopted', 'expiry')
    OR (idempotency_key IS NOT null AND length(idempotency_key) BETWEEN 1 AND 128)
),
ADD CONSTRAINT hold_is_named CHECK (
    (hold_seq IS NOT null) = (type IN ('hold', 'capture', 'release', 'expire'))
);

-- For reports over all users. Entries come in the order of time, so a few bytes per range of pages
-- tell where a time lies.
CREATE INDEX entries_by_time ON credit_transactions USING brin (timestamp);

-- A hold in its present state. The entry that made it stands at (user_id, seq), the one that ended
-- it at settled_seq, a late capture at captured_seq.
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
    REFERENCES user_credits (user_id) ON DELETE CASCADE,
    CONSTRAINT state_is_known CHECK (state IN ('held', 'captured', 'released', 'expired')),
    CONSTRAINT amount_in_range CHECK (amount BETWEEN 1 AND 1000000000000),
    CONSTRAINT settled_once CHECK ((state = 'held') = (settled_seq IS null)),
    CONSTRAINT captured_when_said CHECK (
        CASE state
            WHEN 'captured' THEN captured >= 1 AND captured_seq IS NOT DISTINCT FROM settled_seq
            WHEN 'expired' THEN (captured >= 1) = (captured_seq IS NOT null)
            ELSE captured = 0 AND captured_seq IS null
        END
    ),
    CONSTRAINT life_is_limited CHECK (expires_at <= created_at + interval '72 hours')
);

CREATE TRIGGER holds_go_with_their_account
BEFORE DELETE ON credit_holds
FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();

CREATE TRIGGER holds_are_never_truncated
BEFORE TRUNCATE ON credit_holds
FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();

-- What is open of a user; the sweeper goes through all of it, which is as much as work is running.
CREATE INDEX open_holds ON credit_holds (user_id, expires_at) WHERE state = 'held';

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
    CONSTRAINT one_change_per_place PRIMARY KEY (user_id, change),
    CONSTRAINT change_belongs_to_an_account FOREIGN KEY (user_id)
    REFERENCES user_credits (user_id) ON DELETE CASCADE
);

CREATE TRIGGER policy_changes_never_change
BEFORE UPDATE OR DELETE ON credit_policy_changes
FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();

CREATE TRIGGER policy_changes_are_never_truncated
BEFORE TRUNCATE ON credit_policy_changes
FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();
