"""Defines a job: its specification, its folder, its heartbeats, its granted devices and its usage."""
