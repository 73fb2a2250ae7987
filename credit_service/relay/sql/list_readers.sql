-- How far all readers have come, and when they last moved.
SELECT
    reader,
    tx,
    user_id,
    kind,
    number,
    moved_at
FROM credit_relay_readers
ORDER BY reader
