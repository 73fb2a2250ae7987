-- A refund or dispute belongs to one payment, even if two of its revisions are recorded for two
-- payments at the same instant: no lock covers both payments, because they may be of two users.
-- opens_ref is the reversal_ref on the row that was first recorded under it and null on later ones.
-- It is null on all rows from before this column too: a batch that finds a row opens nothing.
ALTER TABLE credit_reversals
ADD COLUMN opens_ref text,
ADD CONSTRAINT one_payment_per_reversal UNIQUE (opens_ref),
ADD CONSTRAINT opens_its_own_ref CHECK (opens_ref = reversal_ref);
