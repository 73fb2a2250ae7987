-- Lists grants of a user up to a seq, newest first: those with credits left, or all. `due` says
-- that holds or grants of the account have a time that has passed and is not recorded; then the
-- grants are not as they are now. A user without an account has no row. A page without grants is
-- one row that has no more than `due`.
SELECT
    listed.seq,
    listed.amount,
    listed.remaining,
    listed.pinned,
    listed.priority,
    listed.expire_time,
    listed.paid,
    listed.series,
    listed.revoked,
    listed.open,
    coalesce(account.next_lapse <= now() OR account.next_hold_expiry <= now(), FALSE) AS due
FROM user_credits AS account
LEFT JOIN credit_grants AS listed
    ON
        account.user_id = listed.user_id
        AND listed.seq <= $2::bigint
        AND ($3::boolean OR listed.remaining > 0)
WHERE account.user_id = $1::uuid
ORDER BY listed.seq DESC
LIMIT $4::bigint
