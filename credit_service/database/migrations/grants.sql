-- Who may touch the tables. Runs with every migration, in its transaction, so that no table is open
-- to outsiders for a moment, and once more at the end. The service's role stands in the setting
-- credit_service.role; empty, the service connects as the owner and only outsiders are shut out.
--
-- Row-level security that is in place is left alone: setting it again would lock the tables.

DO $$
DECLARE
    service text := current_setting('credit_service.role');
    -- The roles of Supabase's data API: a browser must not reach the book through it.
    outsiders text[] := ARRAY(
        SELECT rolname FROM pg_roles
        WHERE rolname IN ('anon', 'authenticated', 'service_role') AND rolname <> service
    );
    home regnamespace;
    book text;
    rights text;
    outsider text;
BEGIN
    IF to_regclass('credit_purchases') IS NOT NULL THEN
        REVOKE ALL ON FUNCTION credit_users FROM PUBLIC;
        FOREACH outsider IN ARRAY outsiders LOOP
            EXECUTE format('REVOKE ALL ON FUNCTION credit_users FROM %I', outsider);
        END LOOP;
    END IF;

    FOR book, rights IN
        SELECT wanted.book, wanted.rights
        FROM (
            VALUES
            ('credit_migrations', 'SELECT'),
            ('user_credits', 'SELECT, INSERT, UPDATE'),
            ('credit_transactions', 'SELECT, INSERT'),
            ('credit_refunds', 'SELECT, INSERT, UPDATE'),
            ('credit_purchases', 'SELECT, INSERT'),
            ('credit_holds', 'SELECT, INSERT, UPDATE'),
            ('credit_policy_changes', 'SELECT, INSERT'),
            ('credit_reversals', 'SELECT, INSERT'),
            ('credit_kept_keys', 'SELECT, INSERT'),
            ('credit_grants', 'SELECT, INSERT, UPDATE'),
            ('credit_grant_changes', 'SELECT, INSERT'),
            ('credit_allowances', 'SELECT, INSERT, UPDATE'),
            ('credit_relay_lease', 'SELECT, UPDATE'),
            ('credit_relay_readers', 'SELECT, INSERT, UPDATE'),
            ('credit_parked_events', 'SELECT, INSERT, UPDATE, DELETE'),
            ('credit_alerts', 'SELECT, INSERT'),
            ('credit_top_ups', 'SELECT, INSERT, UPDATE'),
            ('credit_top_up_counts', 'SELECT, INSERT, UPDATE'),
            ('credit_top_up_changes', 'SELECT, INSERT'),
            ('credit_alert_states', 'SELECT, INSERT, UPDATE, DELETE'),
            ('credit_expiring_alerts', 'SELECT, INSERT, UPDATE'),
            ('credit_feed', 'SELECT'),
            ('credit_feed_advances', 'SELECT'),
            ('credit_feed_numbers', 'SELECT')
        ) AS wanted (book, rights)
        WHERE
            to_regclass(wanted.book) IS NOT NULL
            -- Before the second file the given tables may still be somebody else's.
            AND (
                wanted.book = 'credit_migrations' OR to_regclass('credit_purchases') IS NOT NULL
            )
    LOOP
        EXECUTE format('REVOKE ALL ON %I FROM PUBLIC', book);
        FOREACH outsider IN ARRAY outsiders LOOP
            EXECUTE format('REVOKE ALL ON %I FROM %I', book, outsider);
        END LOOP;
        IF outsiders <> '{}' AND EXISTS (
            SELECT FROM pg_class
            WHERE oid = book::regclass AND relkind = 'r' AND NOT relrowsecurity
        ) THEN
            EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', book);
        END IF;
        CONTINUE WHEN service = '';
        EXECUTE format('REVOKE ALL ON %I FROM %I', book, service);
        IF EXISTS (
            SELECT FROM pg_class
            WHERE oid = book::regclass AND relrowsecurity AND NOT EXISTS (
                SELECT FROM pg_policy WHERE polrelid = pg_class.oid AND polname = service
            )
        ) THEN
            EXECUTE format(
                'CREATE POLICY %I ON %I TO %I USING (true) WITH CHECK (true)',
                service, book, service
            );
        END IF;
        EXECUTE format('GRANT %s ON %I TO %I', rights, book, service);
    END LOOP;

    IF service = '' THEN
        RETURN;
    END IF;

    SELECT relnamespace INTO home
    FROM pg_class WHERE oid = 'credit_migrations'::regclass;
    IF NOT has_schema_privilege(service, home::oid, 'USAGE') THEN
        EXECUTE format('GRANT USAGE ON SCHEMA %s TO %I', home, service);
    END IF;
    IF to_regclass('credit_purchases') IS NULL THEN
        RETURN;
    END IF;
    EXECUTE format('GRANT EXECUTE ON FUNCTION credit_users TO %I', service);
    IF obj_description('auth.users'::regclass) = 'made by credit_service' THEN
        EXECUTE format('GRANT USAGE ON SCHEMA auth TO %I', service);
        -- Citus writes the defaults of a distributed table itself, so it needs the right to.
        EXECUTE format('GRANT INSERT (id, created_at) ON auth.users TO %I', service);
    END IF;
END
$$;
