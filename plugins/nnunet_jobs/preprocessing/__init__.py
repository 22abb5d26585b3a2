"""From registered cases to an immutable preprocessed version: fingerprint, plans, cases, splits, publication."""
