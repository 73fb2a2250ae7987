-- Parks events. One that is parked already, or dead, stays as it is.
INSERT INTO credit_parked_events (
    endpoint, user_id, tx, kind, number, type, parked_at, tries, next_try, problem
)
SELECT
    $1 AS endpoint,
    event.user_id,
    event.tx,
    event.kind,
    event.number,
    event.type,
    clock_timestamp() AS parked_at,
    event.tries,
    CASE
        WHEN event.tries > 0
            THEN clock_timestamp() + event.wait_ms * interval '1 millisecond'
    END AS next_try,
    event.problem
FROM
    unnest(
        $2::uuid[],
        $3::bigint[],
        $4::bigint[],
        $5::bigint[],
        $6::text[],
        $7::bigint[],
        $8::bigint[],
        $9::text[]
    ) AS event (user_id, tx, kind, number, type, tries, wait_ms, problem)
ON CONFLICT (endpoint, user_id, tx, kind, number) DO NOTHING
