"""Commands that people type: ``python -m nnunet_jobs validate|deidentify|serve|withdraw``."""
