-- Forgets accounts that have enough again.
DELETE FROM credit_alert_states
WHERE user_id = ANY($1::uuid[])
