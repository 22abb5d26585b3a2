"""Implements the commands of ``python -m nnunet_jobs``, such as ``validate``, ``deidentify``, ``serve`` and ``withdraw``."""
