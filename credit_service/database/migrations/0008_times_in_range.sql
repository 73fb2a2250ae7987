-- Every time in the ledger is one that an answer can show: a google.protobuf.Timestamp holds the
-- years 1 to 9999. An adopted entry may be older, even from before all time (-infinity). It moves
-- to the first moment that can be shown, which keeps the order, and its metadata keeps the time as
-- given. The constraints keep out every time that no answer could show.

SET LOCAL TIME ZONE 'UTC';

ALTER TABLE credit_transactions DISABLE TRIGGER entries_never_change;

UPDATE credit_transactions
SET
    timestamp = greatest(
        timestamptz '0001-01-01 00:00:00+00', least(timestamp, timestamptz '9999-12-31 23:59:59+00')
    ),
    metadata = coalesce(metadata, '{}') || jsonb_build_object('given_time', timestamp::text)
WHERE timestamp < '0001-01-01 00:00:00+00' OR timestamp >= '10000-01-01 00:00:00+00';

ALTER TABLE credit_transactions
ENABLE TRIGGER entries_never_change,
ADD CONSTRAINT time_can_be_shown
CHECK (timestamp >= '0001-01-01 00:00:00+00' AND timestamp < '10000-01-01 00:00:00+00');

ALTER TABLE user_credits
ADD CONSTRAINT times_can_be_shown
CHECK (
    last_updated >= '0001-01-01 00:00:00+00' AND last_updated < '10000-01-01 00:00:00+00'
    AND next_hold_expiry >= '0001-01-01 00:00:00+00'
    AND next_hold_expiry < '10000-01-01 00:00:00+00'
    AND counted_at >= '0001-01-01 00:00:00+00' AND counted_at < '10000-01-01 00:00:00+00'
);

ALTER TABLE credit_holds
ADD CONSTRAINT times_can_be_shown
CHECK (
    created_at >= '0001-01-01 00:00:00+00' AND created_at < '10000-01-01 00:00:00+00'
    AND expires_at >= '0001-01-01 00:00:00+00' AND expires_at < '10000-01-01 00:00:00+00'
);

ALTER TABLE credit_reversals
ADD CONSTRAINT time_can_be_shown
CHECK (recorded_at >= '0001-01-01 00:00:00+00' AND recorded_at < '10000-01-01 00:00:00+00');
