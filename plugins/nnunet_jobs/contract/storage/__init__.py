"""Handles files that several processes share: durable writing, the workspace, its permissions, predictions, withdrawals."""
