-- Adds up the pools of all accounts at a time: the credits of those not in debt, and what the
-- others owe. An account was then as its last entry up to that time left it, and its grants as
-- their last changes did.
SELECT
    coalesce(sum(pool.credits) FILTER (WHERE pool.credits > 0), 0)::bigint AS undated,
    coalesce(-sum(pool.credits) FILTER (WHERE pool.credits < 0), 0)::bigint AS debt,
    count(*) FILTER (WHERE pool.credits < 0) AS accounts_in_debt
FROM (
    SELECT account.balance - account.in_grants AS credits
    FROM user_credits AS account
    WHERE account.last_updated <= $1::timestamptz
    UNION ALL
    SELECT
        entry.balance_after - coalesce((
            SELECT sum(left_by.remaining_after)::bigint
            FROM (
                SELECT DISTINCT ON (change.grant_seq)
                    change.grant_seq,
                    change.remaining_after
                FROM credit_grant_changes AS change
                WHERE change.user_id = account.user_id AND change.seq <= entry.seq
                ORDER BY change.grant_seq ASC, change.seq DESC, change.step DESC
            ) AS left_by
        ), 0) AS credits
    FROM user_credits AS account
    INNER JOIN LATERAL (
        SELECT
            newest.seq,
            newest.balance_after
        FROM credit_transactions AS newest
        WHERE
            newest.user_id = account.user_id
            AND newest.timestamp <= $1::timestamptz
        ORDER BY newest.seq DESC
        LIMIT 1
    ) AS entry ON TRUE
    WHERE account.last_updated > $1::timestamptz
) AS pool
