"""Finds the devices of this host, leases them to jobs, and orders the jobs that wait."""
