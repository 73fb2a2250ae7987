-- Loads holds by user and the seq of the entry that made each.
SELECT
    hold.user_id,
    hold.seq,
    hold.state,
    hold.amount,
    hold.captured,
    hold.created_at,
    hold.expires_at,
    hold.operation,
    hold.quantity,
    hold.unit_cost,
    hold.price_version,
    hold.reference,
    hold.settled_seq,
    hold.captured_seq
FROM unnest($1::uuid[], $2::bigint[]) AS asked (user_id, seq)
INNER JOIN credit_holds AS hold
    ON
        asked.user_id = hold.user_id
        AND asked.seq = hold.seq
-- distributed: WHERE hold.user_id = any($1::uuid[])
