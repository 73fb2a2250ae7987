-- Finds the transactions that have locked accounts to write entries, or are about to. A batch locks
-- its accounts before it takes the time of its entries.
SELECT DISTINCT held.virtualtransaction
FROM pg_locks AS held
INNER JOIN pg_database AS here ON held.database = here.oid
WHERE
    here.datname = current_database()
    AND held.locktype = 'relation'
    AND held.relation = 'user_credits'::regclass
    AND held.mode = any($1::text[])
    AND held.pid IS DISTINCT FROM pg_backend_pid()
