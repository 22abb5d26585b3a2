"""Runs one attempt of a job: takes devices, supervises the step's process, and records the outcome."""
