-- Gives the lease back, so that another process need not wait until it runs out.
UPDATE credit_relay_lease
SET until = clock_timestamp()
WHERE id = 1 AND fence = $1 AND until > clock_timestamp()
