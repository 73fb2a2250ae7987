-- Records changes of the top-ups of accounts.
INSERT INTO credit_top_up_changes (
    user_id, change, kind, changed_at, caller, off, number, pack, state, payment_ref, tries, reason,
    link, created_at, seq, tx
)
SELECT
    made.user_id, -- distributed: account.user_id,
    made.change,
    made.kind,
    made.changed_at,
    made.caller,
    made.off,
    made.number,
    made.pack,
    made.state,
    made.payment_ref,
    made.tries,
    made.reason,
    made.link,
    made.created_at,
    made.seq,
    made.tx
FROM
    unnest(
        $1::uuid[], $2::bigint[], $3::text[], $4::timestamptz[], $5::text[], $6::text[],
        $7::bigint[], $8::text[], $9::text[], $10::text[], $11::bigint[], $12::text[],
        $13::text[], $14::timestamptz[], $15::bigint[], $16::bigint[]
    ) AS made (
        user_id, change, kind, changed_at, caller, off, number, pack, state, payment_ref, tries,
        reason, link, created_at, seq, tx
    )
-- distributed: INNER JOIN user_credits AS account ON made.user_id = account.user_id
-- distributed: WHERE account.user_id = any($1::uuid[])
