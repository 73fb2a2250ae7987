-- Finds which of these users without an account exist, and until when each has had an allowance: a
-- user who was deleted and created again keeps that time.
SELECT
    asked.user_id,
    allowance.until,
    known.id IS NOT null AS known
FROM unnest($1::uuid[]) AS asked (user_id)
LEFT JOIN credit_users($1::uuid[]) AS known (id) ON asked.user_id = known.id
LEFT JOIN credit_allowances AS allowance ON asked.user_id = allowance.user_id
