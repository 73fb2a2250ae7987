-- Adds users to a user table that is the service's own.
INSERT INTO auth.users (id)
SELECT new_user.id FROM unnest($1::uuid[]) AS new_user (id)
ORDER BY new_user.id
ON CONFLICT DO NOTHING
