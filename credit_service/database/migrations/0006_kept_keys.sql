-- Idempotency keys of calls that were answered with the entry of another call: the release of a
-- hold that had ended, or a purchase whose payment had been credited. An entry holds the key of the
-- call that made it; these keys have no entry of their own. call is the RPC that used the key.
-- Append-only.
CREATE TABLE credit_kept_keys (
    user_id uuid NOT NULL,
    key text NOT NULL,
    seq bigint NOT NULL,
    call text NOT NULL,
    CONSTRAINT one_answer_per_key PRIMARY KEY (user_id, key),
    CONSTRAINT key_belongs_to_an_account FOREIGN KEY (user_id)
    REFERENCES user_credits (user_id) ON DELETE CASCADE,
    CONSTRAINT seq_counts_from_one CHECK (seq >= 1),
    CONSTRAINT key_has_a_length CHECK (length(key) BETWEEN 1 AND 128),
    CONSTRAINT call_makes_no_entry CHECK (
        call IN ('PurchaseCredits', 'CaptureHold', 'ReleaseHold')
    )
);

CREATE TRIGGER kept_keys_never_change
BEFORE UPDATE OR DELETE ON credit_kept_keys
FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();

CREATE TRIGGER kept_keys_are_never_truncated
BEFORE TRUNCATE ON credit_kept_keys
FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();
