-- Writes requests for top-ups that were made or changed.
INSERT INTO credit_top_ups (
    user_id, number, pack, state, payment_ref, tries, reason, link, created_at, changed_at, seq
)
SELECT
    changed.user_id, -- distributed: account.user_id,
    changed.number,
    changed.pack,
    changed.state,
    changed.payment_ref,
    changed.tries,
    changed.reason,
    changed.link,
    changed.created_at,
    changed.changed_at,
    changed.seq
FROM
    unnest(
        $1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[],
        $8::text[], $9::timestamptz[], $10::timestamptz[], $11::bigint[]
    ) AS changed (
        user_id, number, pack, state, payment_ref, tries, reason, link, created_at, changed_at, seq
    )
-- distributed: INNER JOIN user_credits AS account ON changed.user_id = account.user_id
-- distributed: WHERE account.user_id = any($1::uuid[])
-- One that is closed before one that is opened, because an account has one open request at most.
ORDER BY changed.user_id, changed.number
ON CONFLICT (user_id, number) DO UPDATE SET
    state = excluded.state,
    payment_ref = excluded.payment_ref,
    tries = excluded.tries,
    reason = excluded.reason,
    link = excluded.link,
    changed_at = excluded.changed_at,
    seq = excluded.seq
