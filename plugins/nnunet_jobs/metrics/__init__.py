"""Computes metrics that compare a segmentation with its reference."""
