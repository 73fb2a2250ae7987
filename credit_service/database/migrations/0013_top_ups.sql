-- Automatic top-ups: an account whose policy says so asks for a purchase when few credits are left.
-- The service asks and keeps count, the bridge charges. An account without such a policy has no row
-- in any of these tables.

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
    CONSTRAINT request_belongs_to_an_account FOREIGN KEY (user_id)
    REFERENCES user_credits (user_id) ON DELETE CASCADE,
    CONSTRAINT number_counts_from_one CHECK (number >= 1),
    CONSTRAINT pack_has_a_length CHECK (length(pack) BETWEEN 1 AND 64),
    CONSTRAINT state_is_known CHECK (state IN ('open', 'succeeded', 'failed', 'not_needed')),
    CONSTRAINT payment_ref_has_a_length CHECK (length(payment_ref) BETWEEN 1 AND 255),
    CONSTRAINT tries_count_up CHECK (tries >= 0),
    CONSTRAINT reason_has_a_length CHECK (length(reason) <= 500),
    CONSTRAINT link_has_a_length CHECK (length(link) <= 2048),
    CONSTRAINT failure_has_a_reason CHECK (
        (tries = 0 AND state NOT IN ('failed', 'not_needed')) OR reason <> ''
    ),
    CONSTRAINT times_rise CHECK (changed_at >= created_at),
    CONSTRAINT success_is_a_purchase CHECK (
        (state = 'succeeded') = (seq IS NOT NULL)
        AND (seq IS NULL OR (seq >= 1 AND payment_ref IS NOT NULL))
    ),
    CONSTRAINT one_top_up_per_payment UNIQUE (payment_ref),
    -- Its index also lists the open requests of all accounts.
    CONSTRAINT one_open_top_up_per_account
    EXCLUDE USING btree (user_id WITH =) WHERE (state = 'open')
);

CREATE TRIGGER top_ups_go_with_their_account
BEFORE DELETE ON credit_top_ups
FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();

CREATE TRIGGER top_ups_are_never_truncated
BEFORE TRUNCATE ON credit_top_ups
FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();

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
    REFERENCES user_credits (user_id) ON DELETE CASCADE,
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
    REFERENCES user_credits (user_id) ON DELETE CASCADE,
    CONSTRAINT change_counts_from_one CHECK (change >= 1),
    CONSTRAINT kind_is_known CHECK (
        kind IN (
            'requested', 'noted', 'failed', 'succeeded', 'not_needed', 'turned_off', 'turned_on'
        )
    ),
    CONSTRAINT change_is_of_a_request CHECK (
        num_nulls(number, pack, state, tries, reason, link, created_at)
        = CASE WHEN kind = 'turned_on' THEN 7 ELSE 0 END
    )
);

CREATE INDEX top_up_changes_in_feed_order ON credit_top_up_changes (tx, user_id, change);

CREATE TRIGGER top_up_changes_never_change
BEFORE UPDATE OR DELETE ON credit_top_up_changes
FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();

CREATE TRIGGER top_up_changes_are_never_truncated
BEFORE TRUNCATE ON credit_top_up_changes
FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();
