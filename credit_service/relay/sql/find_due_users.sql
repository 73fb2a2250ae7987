-- Of whom an event that is parked is due to be tried, those that wait for longest first.
SELECT user_id
FROM credit_parked_events
WHERE endpoint = $1 AND next_try <= clock_timestamp() AND user_id <> all($2::uuid[])
ORDER BY next_try
LIMIT $3
