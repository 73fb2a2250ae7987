-- Loads what a batch needs about top-ups: the counts of accounts, each with its open request, then
-- the requests that commands name, then those of any user whose payments commands name.
SELECT
    counts.user_id,
    counts.requests,
    counts.failures,
    counts.off,
    counts.month,
    counts.charges,
    request.user_id AS request_user_id,
    request.number,
    request.pack,
    request.state,
    request.payment_ref,
    request.tries,
    request.reason,
    request.link,
    request.created_at,
    request.changed_at,
    request.seq
FROM credit_top_up_counts AS counts
LEFT JOIN credit_top_ups AS request
    ON counts.user_id = request.user_id AND request.state = 'open'
WHERE counts.user_id = any($1::uuid[])
UNION ALL
SELECT
    NULL AS user_id,
    NULL AS requests,
    NULL AS failures,
    NULL AS off,
    NULL AS month,
    NULL AS charges,
    request.user_id AS request_user_id,
    request.number,
    request.pack,
    request.state,
    request.payment_ref,
    request.tries,
    request.reason,
    request.link,
    request.created_at,
    request.changed_at,
    request.seq
FROM unnest($2::uuid[], $3::bigint[]) AS asked (user_id, number)
INNER JOIN credit_top_ups AS request
    ON asked.user_id = request.user_id AND asked.number = request.number
UNION ALL
SELECT
    NULL AS user_id,
    NULL AS requests,
    NULL AS failures,
    NULL AS off,
    NULL AS month,
    NULL AS charges,
    request.user_id AS request_user_id,
    request.number,
    request.pack,
    request.state,
    request.payment_ref,
    request.tries,
    request.reason,
    request.link,
    request.created_at,
    request.changed_at,
    request.seq
FROM credit_top_ups AS request
WHERE request.payment_ref = any($4::text[])
