-- Locks a reader until the transaction ends; no row: it is another process's now.
SELECT reader
FROM credit_relay_readers
WHERE reader = $1 AND fence = $2
FOR NO KEY UPDATE
