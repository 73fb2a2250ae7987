-- Who has the lease, and for how long, in seconds; below zero it has run out.
SELECT
    holder,
    fence,
    extract(EPOCH FROM until - clock_timestamp())::float8 AS seconds
FROM credit_relay_lease
WHERE id = 1 AND fence > 0
