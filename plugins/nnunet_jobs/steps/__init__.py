"""Implements the five steps, one module each, with ``run(params, context) -> result``. Only a job's child process imports it."""
