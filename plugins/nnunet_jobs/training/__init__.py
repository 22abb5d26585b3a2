"""Trains folds with any nnU-Net trainer class, keeps verified checkpoints, validates, and decides whether a fold is complete."""
