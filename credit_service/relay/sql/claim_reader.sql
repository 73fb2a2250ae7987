-- Makes a reader this process's own, at the place it has or, if it is new, at the given one; no
-- row: a process with a later lease has it.
INSERT INTO credit_relay_readers AS known (reader, fence, tx, user_id, kind, number, moved_at)
VALUES ($1, $2, $3, $4, $5, $6, clock_timestamp())
ON CONFLICT (reader) DO UPDATE SET fence = excluded.fence WHERE known.fence <= excluded.fence
RETURNING tx, user_id, kind, number
