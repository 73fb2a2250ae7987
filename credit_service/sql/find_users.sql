-- Tells which of these users exist.
SELECT id FROM auth.users
WHERE id = ANY($1::uuid[])
