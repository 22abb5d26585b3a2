"""Defines what both servers share: problem documents, uploads, and the check for loopback addresses."""
