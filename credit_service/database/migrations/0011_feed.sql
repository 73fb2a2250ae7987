-- The feed: every entry and every change of policy has a place in one order over all users, so that
-- readers can follow the whole ledger. docs/events.md describes it for readers.

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
BEFORE UPDATE OR DELETE ON credit_feed_advances
FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();

CREATE TRIGGER advances_are_never_truncated
BEFORE TRUNCATE ON credit_feed_advances
FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();

-- The row, the server as it is at this moment, and base: what is added to a transaction's id here
-- and now. passed is how many leaps the owner has not acknowledged yet. The timeline is that of the
-- write-ahead log, because the control file names the old one for a while after a promotion.
CREATE VIEW credit_feed_numbers WITH (security_invoker = true) AS
WITH server AS (
    SELECT
        control.system_identifier,
        ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint AS timeline
    FROM pg_control_system() AS control
),

compared AS (
    SELECT
        feed.feed_id,
        feed.feed_offset,
        feed.leap,
        feed.system_identifier,
        feed.timeline,
        server.system_identifier AS server_system_identifier,
        server.timeline AS server_timeline,
        CASE
            WHEN
                server.system_identifier = feed.system_identifier
                AND server.timeline >= feed.timeline
                THEN server.timeline - feed.timeline
            ELSE server.timeline + 1
        END AS passed
    FROM credit_feed AS feed
    CROSS JOIN server
    -- Reads the one row by its key. The service's role scans no tables (enable_seqscan is off), and
    -- to a PostgreSQL before 18 a scan would look so dear that it compiles each statement.
    WHERE feed.id = 1
)

SELECT
    compared.feed_id,
    compared.feed_offset,
    compared.leap,
    compared.system_identifier,
    compared.timeline,
    compared.server_system_identifier,
    compared.server_timeline,
    compared.passed,
    compared.feed_offset + compared.passed * compared.leap AS base
FROM compared;

INSERT INTO credit_feed (id, feed_id, feed_offset, leap, system_identifier, timeline)
SELECT
    1 AS id,
    gen_random_uuid() AS feed_id,
    0 AS feed_offset,
    1099511627776 AS leap,
    control.system_identifier,
    ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint AS timeline
FROM pg_control_system() AS control;

-- tx is the greater of the number of the transaction that wrote the entry and the account's tx, so
-- that the order (tx, user_id, seq) is the order of seq for every user. Entries from before have 0.
-- The default is constant for a moment only, which leaves existing rows as they are on the disk;
-- afterwards a number that is missing is filled in by a trigger.
--
-- alert_below null is as configured. A top_up is complete or null.
ALTER TABLE user_credits
ADD COLUMN alert_below bigint,
ADD COLUMN top_up_below bigint,
ADD COLUMN top_up_pack text,
ADD COLUMN top_up_per_month bigint,
ADD COLUMN top_up_changes bigint NOT NULL DEFAULT 0,
ADD COLUMN tx bigint NOT NULL DEFAULT 0,
ADD CONSTRAINT top_up_changes_count_up CHECK (top_up_changes >= 0),
ADD CONSTRAINT alert_in_range CHECK (alert_below BETWEEN -1000000000000 AND 1000000000000),
ADD CONSTRAINT top_up_is_complete CHECK (
    num_nulls(top_up_below, top_up_pack, top_up_per_month) IN (0, 3)
    AND top_up_below BETWEEN -1000000000000 AND 1000000000000
    AND length(top_up_pack) BETWEEN 1 AND 64
    AND top_up_per_month >= 1
);

ALTER TABLE credit_transactions ADD COLUMN tx bigint NOT NULL DEFAULT 0;

ALTER TABLE credit_policy_changes
ADD COLUMN alert_below bigint,
ADD COLUMN top_up_below bigint,
ADD COLUMN top_up_pack text,
ADD COLUMN top_up_per_month bigint,
ADD COLUMN tx bigint NOT NULL DEFAULT 0;

ALTER TABLE user_credits ALTER COLUMN tx DROP DEFAULT;

ALTER TABLE credit_transactions ALTER COLUMN tx DROP DEFAULT;

ALTER TABLE credit_policy_changes ALTER COLUMN tx DROP DEFAULT;

-- While replicas of two releases run side by side, the older ones know nothing of tx. These
-- triggers number what they write: the account first, then, in the same transaction, its entries.
CREATE FUNCTION credit_number_account() RETURNS trigger
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    EXECUTE format(
        'SELECT greatest($1, base + pg_current_xact_id()::text::bigint) FROM %I.credit_feed_numbers',
        TG_TABLE_SCHEMA
    ) INTO NEW.tx USING NEW.tx;
    RETURN NEW;
END
$$;

CREATE FUNCTION credit_number_after_account() RETURNS trigger
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    EXECUTE format('SELECT tx FROM %I.user_credits WHERE user_id = $1', TG_TABLE_SCHEMA)
    INTO NEW.tx USING NEW.user_id;
    -- Without an account it is the foreign key that refuses the row.
    NEW.tx := coalesce(NEW.tx, 0);
    RETURN NEW;
END
$$;

CREATE TRIGGER new_accounts_have_a_number
BEFORE INSERT ON user_credits
FOR EACH ROW WHEN (new.tx IS null) EXECUTE FUNCTION credit_number_account();

CREATE TRIGGER changed_accounts_have_a_number
BEFORE UPDATE ON user_credits
FOR EACH ROW WHEN (
    new.tx = old.tx AND (new.seq <> old.seq OR new.policy_changes <> old.policy_changes)
) EXECUTE FUNCTION credit_number_account();

CREATE TRIGGER entries_have_a_number
BEFORE INSERT ON credit_transactions
FOR EACH ROW WHEN (new.tx IS null) EXECUTE FUNCTION credit_number_after_account();

CREATE TRIGGER policy_changes_have_a_number
BEFORE INSERT ON credit_policy_changes
FOR EACH ROW WHEN (new.tx IS null) EXECUTE FUNCTION credit_number_after_account();
