-- What the given tables must not hold, found after 0002_book was released. A released file is never
-- edited, so this one runs before it, in the same transaction.
--
-- A time before the year 1, such as -infinity, can be stored and cannot be sent: the whole history
-- of its user would be unreadable. Times to come need no check, because 0002_book makes them now().
SET LOCAL TIME ZONE 'UTC';

DO $$
DECLARE
    unusable bigint;
BEGIN
    SELECT count(*) INTO unusable
    FROM credit_transactions
    WHERE timestamp::timestamptz < timestamptz '0001-01-01 00:00:00+00';
    IF unusable > 0 THEN
        RAISE EXCEPTION '% rows of credit_transactions have a time before the year 1', unusable
        USING HINT = 'Correct their times or set them to null, then migrate again.';
    END IF;
END
$$;
