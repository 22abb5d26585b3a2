"""Predicts all cases in one process that keeps the model loaded; isolates each case, verifies and records each output."""
