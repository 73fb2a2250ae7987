-- Reads the time and an account; the account's columns are null where there is none.
SELECT
    clock.now,
    account.user_id,
    account.balance,
    account.held,
    account.seq,
    account.last_updated
FROM (SELECT clock_timestamp() AS now) AS clock
LEFT JOIN user_credits AS account ON account.user_id = $1::uuid
