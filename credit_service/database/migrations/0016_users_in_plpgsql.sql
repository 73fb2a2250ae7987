-- Which of these are users, as before, in PL/pgSQL: a distributed database does not plan a function
-- in SQL whose parameters it cannot see.
CREATE OR REPLACE FUNCTION credit_users(asked uuid[]) RETURNS SETOF uuid
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    RETURN QUERY SELECT id FROM auth.users WHERE id = ANY(asked);
END
$$;
