"""Checks sources that come as an archive entry by entry, and unpacks them into a scratch folder."""
