-- Webhooks and alerts: which process sends them, how far each reader of the feed has come, and what
-- is put by. None of these tables is on the path of a call, so their keys need not begin with the
-- user.

-- The one process that sends. Every change of hands counts fence up.
CREATE TABLE credit_relay_lease (
    id bigint NOT NULL,
    fence bigint NOT NULL,
    holder text NOT NULL,
    until timestamptz NOT NULL,
    CONSTRAINT one_lease PRIMARY KEY (id),
    CONSTRAINT only_one CHECK (id = 1)
);

INSERT INTO credit_relay_lease (id, fence, holder, until) VALUES (1, 0, '', '-infinity');

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
    CONSTRAINT reader_has_a_name CHECK (length(reader) BETWEEN 1 AND 100)
) WITH (fillfactor = 50);

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
    REFERENCES user_credits (user_id) ON DELETE CASCADE,
    CONSTRAINT alert_counts_from_one CHECK (alert >= 1)
);

CREATE INDEX alerts_in_feed_order ON credit_alerts (tx, user_id, alert);

CREATE TRIGGER alerts_never_change
BEFORE UPDATE OR DELETE ON credit_alerts
FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();

CREATE TRIGGER alerts_are_never_truncated
BEFORE TRUNCATE ON credit_alerts
FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();

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
    REFERENCES user_credits (user_id) ON DELETE CASCADE,
    CONSTRAINT level_is_known CHECK (level IN ('low', 'depleted')),
    CONSTRAINT what_waits_is_complete CHECK (
        num_nulls(
            waiting_tx, waiting_is_policy, waiting_number, waiting_time, waiting_balance,
            waiting_held, waiting_floor
        ) IN (0, 7)
    )
);

CREATE INDEX waiting_alert_states ON credit_alert_states (cools_until)
WHERE waiting_tx IS NOT NULL;

-- Which expiry of a grant was announced last.
CREATE TABLE credit_expiring_alerts (
    user_id uuid NOT NULL,
    seq bigint NOT NULL,
    expire_time timestamptz NOT NULL,
    CONSTRAINT one_expiring_alert_per_grant PRIMARY KEY (user_id, seq),
    CONSTRAINT expiring_alert_is_of_a_grant FOREIGN KEY (user_id, seq)
    REFERENCES credit_grants (user_id, seq) ON DELETE CASCADE
);
