"""Prediction: one warm process for all cases, each case isolated, each output verified and recorded."""
