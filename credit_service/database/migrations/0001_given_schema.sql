-- The two given tables, where a database does not hold them yet. What exists is left as it is.

DO $$
BEGIN
    IF to_regclass('auth.users') IS NULL THEN
        CREATE SCHEMA IF NOT EXISTS auth;
        CREATE TABLE auth.users (
            id uuid PRIMARY KEY,
            created_at timestamptz NOT NULL DEFAULT now()
        );
        -- Tells a table made here, to which the service may add users, from one of Supabase.
        COMMENT ON TABLE auth.users IS 'made by credit_service';
    END IF;
END
$$;

CREATE TABLE IF NOT EXISTS user_credits (
    user_id uuid PRIMARY KEY REFERENCES auth.users (id) ON DELETE CASCADE,
    balance integer DEFAULT 0,
    last_updated timestamp
);

CREATE TABLE IF NOT EXISTS credit_transactions (
    id text PRIMARY KEY,
    user_id uuid REFERENCES auth.users (id) ON DELETE CASCADE,
    type text CHECK (type IN ('purchase', 'spend', 'refund')),
    amount integer,
    description text,
    timestamp timestamp
);
