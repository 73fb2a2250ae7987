-- Keeps the lease for longer; no row: another process has it.
UPDATE credit_relay_lease
SET until = clock_timestamp() + $2::bigint * interval '1 millisecond'
WHERE id = 1 AND fence = $1
RETURNING fence
