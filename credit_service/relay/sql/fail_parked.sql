-- Notes a failed attempt to send an event that is put by; from now on it is dead, or tried later.
UPDATE credit_parked_events
SET
    tries = tries + 1,
    problem = $6,
    next_try
    = CASE WHEN NOT $8::bool THEN clock_timestamp() + $7::bigint * interval '1 millisecond' END,
    dead_at = CASE WHEN $8 THEN clock_timestamp() END
WHERE endpoint = $1 AND tx = $2 AND user_id = $3 AND kind = $4 AND number = $5
