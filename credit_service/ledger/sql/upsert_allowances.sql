-- Records until when users have had an allowance; a recorded time never moves back.
INSERT INTO credit_allowances AS allowance (user_id, until)
SELECT
    given.user_id,
    given.until
FROM unnest($1::uuid[], $2::timestamptz[]) AS given (user_id, until)
ORDER BY given.user_id
ON CONFLICT (user_id) DO UPDATE SET until = greatest(allowance.until, excluded.until)
