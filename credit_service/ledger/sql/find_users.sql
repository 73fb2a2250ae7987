-- Finds which of these users exist.
SELECT known.id FROM credit_users($1::uuid[]) AS known (id)
