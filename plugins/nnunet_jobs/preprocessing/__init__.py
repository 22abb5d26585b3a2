"""Turns registered cases into an immutable preprocessed version: fingerprint, plans, cases, splits, publication."""
