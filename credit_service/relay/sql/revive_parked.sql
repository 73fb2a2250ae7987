-- Lets one event be tried again at once, and, if it was dead, for as long as a new one.
UPDATE credit_parked_events
SET
    next_try = clock_timestamp(),
    parked_at = CASE WHEN dead_at IS NULL THEN parked_at ELSE clock_timestamp() END,
    dead_at = NULL
WHERE endpoint = $1 AND tx = $2 AND user_id = $3 AND kind = $4 AND number = $5
RETURNING endpoint
