-- Forgets an event that the endpoint has, or that is gone from the ledger.
DELETE FROM credit_parked_events
WHERE endpoint = $1 AND tx = $2 AND user_id = $3 AND kind = $4 AND number = $5
