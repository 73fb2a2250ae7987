-- Notes a failed attempt to send an event that is parked; from now on it is dead, or tried later.
-- An operator may have asked for later events of the same user. They wait for this one again:
-- otherwise they would be due all the time, and this one would be tried without a pause.
WITH others AS (
    UPDATE credit_parked_events
    SET next_try = NULL
    WHERE
        endpoint = $1 AND user_id = $3 AND next_try IS NOT NULL AND dead_at IS NULL
        AND (tx, kind, number) <> ($2, $4, $5)
)

UPDATE credit_parked_events
SET
    tries = tries + 1,
    problem = $6,
    next_try
    = CASE WHEN NOT $8::bool THEN clock_timestamp() + $7::bigint * interval '1 millisecond' END,
    dead_at = CASE WHEN $8 THEN clock_timestamp() END
WHERE endpoint = $1 AND tx = $2 AND user_id = $3 AND kind = $4 AND number = $5
