"""Devices of this host: what there is, who may use it now, and who is next."""
