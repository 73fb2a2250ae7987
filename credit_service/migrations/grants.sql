-- Who may touch the tables. Runs after every migration, with the service's role in the setting
-- credit_service.role (empty: the service connects as the owner, and only outsiders are shut out).

DO $$
DECLARE
    service text := current_setting('credit_service.role');
    outsider text;
    book text;
BEGIN
    FOREACH book IN ARRAY ARRAY[
        'user_credits', 'credit_transactions', 'credit_refunds', 'credit_purchases',
        'credit_migrations'
    ]
    LOOP
        EXECUTE format('REVOKE ALL ON %I FROM PUBLIC', book);
        -- The roles of Supabase's data API: a browser must not reach the book through it.
        FOR outsider IN
            SELECT rolname FROM pg_roles
            WHERE rolname IN ('anon', 'authenticated', 'service_role') AND rolname <> service
        LOOP
            EXECUTE format('REVOKE ALL ON %I FROM %I', book, outsider);
            EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', book);
        END LOOP;
        CONTINUE WHEN service = '';
        EXECUTE format('REVOKE ALL ON %I FROM %I', book, service);
        IF EXISTS (
            SELECT FROM pg_class WHERE oid = book::regclass AND relrowsecurity
        ) THEN
            EXECUTE format('DROP POLICY IF EXISTS the_service_sees_all ON %I', book);
            EXECUTE format(
                'CREATE POLICY the_service_sees_all ON %I TO %I USING (true) WITH CHECK (true)',
                book, service
            );
        END IF;
    END LOOP;

    IF service = '' THEN
        RETURN;
    END IF;

    EXECUTE format('GRANT USAGE ON SCHEMA public, auth TO %I', service);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE ON user_credits TO %I', service);
    EXECUTE format('GRANT SELECT, INSERT ON credit_transactions TO %I', service);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE ON credit_refunds TO %I', service);
    EXECUTE format('GRANT SELECT, INSERT ON credit_purchases TO %I', service);
    EXECUTE format('GRANT SELECT ON credit_migrations TO %I', service);
    EXECUTE format('GRANT SELECT (id) ON auth.users TO %I', service);
    IF obj_description('auth.users'::regclass) = 'made by credit_service' THEN
        EXECUTE format('GRANT INSERT (id) ON auth.users TO %I', service);
    END IF;
END
$$;
