-- Corrections by operators. They are entries of their own type, because a correction made as a
-- spend or a grant would count as work or as goodwill in every report.

ALTER TABLE credit_transactions
DROP CONSTRAINT type_is_known,
DROP CONSTRAINT changes_follow_type,
ADD CONSTRAINT type_is_known CHECK (
    type IN (
        'purchase', 'spend', 'refund', 'grant', 'reversal', 'hold', 'capture', 'release', 'expire',
        'adjustment'
    )
),
ADD CONSTRAINT changes_follow_type CHECK (
    CASE
        WHEN type IN ('purchase', 'refund', 'grant')
            THEN balance_change = amount AND held_change = 0
        WHEN type = 'spend' THEN balance_change = -amount AND held_change = 0
        -- A dispute that was won gives back what it took; a correction goes up or down.
        WHEN type IN ('reversal', 'adjustment')
            THEN abs(balance_change) = amount AND held_change = 0
        WHEN type = 'hold' THEN balance_change = 0 AND held_change = amount
        -- A late capture finds nothing held any more.
        WHEN type = 'capture' THEN balance_change = -amount AND held_change <= 0
        ELSE balance_change = 0 AND held_change = -amount
    END
),
-- A correction is what an operator asked for, with a reason. Its floor is null if it adds credits,
-- or if the operator allowed debt.
ADD CONSTRAINT adjustment_is_as_asked CHECK (
    type <> 'adjustment'
    OR (
        requested_amount IS NOT DISTINCT FROM balance_change
        AND description <> ''
        AND (
            floor IS null
            OR (balance_change < 0 AND balance_after - held_after >= floor)
        )
    )
),
ADD CONSTRAINT adjustments_have_their_call CHECK (
    (type = 'adjustment') = (call = 'AdjustCredits')
);
