-- Takes the lease if it is free or has run out; no row: another process has it.
UPDATE credit_relay_lease
SET
    fence = fence + 1,
    holder = $1,
    until = clock_timestamp() + $2::bigint * interval '1 millisecond'
WHERE id = 1 AND until <= clock_timestamp()
RETURNING fence
