-- Finds the transaction that keeps the boundary of the feed where it is: the oldest one of the
-- whole database server. It may be of another database, and it may be prepared, without a session.
SELECT
    oldest.id,
    held.pid,
    session.datname AS database,
    session.application_name AS application,
    prepared.gid,
    extract(
        EPOCH FROM clock_timestamp() - coalesce(session.xact_start, prepared.prepared)
    )::float8 AS seconds
FROM (SELECT pg_snapshot_xmin(pg_current_snapshot())::xid AS id) AS oldest
INNER JOIN pg_locks AS held
    ON
        oldest.id = held.transactionid
        AND held.locktype = 'transactionid'
        AND held.granted
        AND held.mode = 'ExclusiveLock'
LEFT JOIN pg_stat_activity AS session ON held.pid = session.pid
LEFT JOIN pg_prepared_xacts AS prepared ON oldest.id = prepared.transaction
