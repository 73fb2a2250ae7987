-- Money that went back: refunds and disputes of payments, and the credits they take.

ALTER TABLE credit_transactions
DROP CONSTRAINT changes_follow_type,
DROP CONSTRAINT key_is_present,
ADD CONSTRAINT changes_follow_type CHECK (
    CASE
        WHEN type IN ('purchase', 'refund', 'grant')
            THEN balance_change = amount AND held_change = 0
        WHEN type = 'spend' THEN balance_change = -amount AND held_change = 0
        -- A dispute that was won gives back what it took.
        WHEN type = 'reversal' THEN abs(balance_change) = amount AND held_change = 0
        WHEN type = 'hold' THEN balance_change = 0 AND held_change = amount
        -- A late capture finds nothing held any more.
        WHEN type = 'capture' THEN balance_change = -amount AND held_change <= 0
        ELSE balance_change = 0 AND held_change = -amount
    END
),
ADD CONSTRAINT key_is_present CHECK (
    call IN ('adopted', 'expiry', 'ReversePurchase')
    OR (idempotency_key IS NOT null AND length(idempotency_key) BETWEEN 1 AND 128)
);

-- Every revision of every refund and dispute; the highest of each counts. Append-only. Like
-- credit_purchases it has no foreign key and outlives a deleted user.
CREATE TABLE credit_reversals (
    reversal_ref text NOT NULL,
    revision bigint NOT NULL,
    payment_ref text NOT NULL,
    user_id uuid NOT NULL,
    seq bigint,
    reversed_minor bigint NOT NULL,
    paid_minor bigint NOT NULL,
    currency text NOT NULL,
    reason text NOT NULL,
    recorded_at timestamptz NOT NULL,
    caller text NOT NULL,
    CONSTRAINT one_record_per_revision PRIMARY KEY (reversal_ref, revision),
    CONSTRAINT revision_counts_from_one CHECK (revision >= 1),
    CONSTRAINT money_in_range CHECK (
        paid_minor BETWEEN 1 AND 1000000000000 AND reversed_minor BETWEEN 0 AND 1000000000000
    )
);

CREATE INDEX reversals_by_payment ON credit_reversals (payment_ref);

CREATE TRIGGER reversals_never_change
BEFORE UPDATE OR DELETE ON credit_reversals
FOR EACH ROW EXECUTE FUNCTION refuse_to_change_the_book();

CREATE TRIGGER reversals_are_never_truncated
BEFORE TRUNCATE ON credit_reversals
FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_book();
