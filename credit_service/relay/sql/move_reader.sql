-- Moves a reader on, never back.
UPDATE credit_relay_readers
SET tx = $2, user_id = $3, kind = $4, number = $5, moved_at = clock_timestamp()
WHERE reader = $1 AND (tx, user_id, kind, number) < ($2, $3, $4, $5)
