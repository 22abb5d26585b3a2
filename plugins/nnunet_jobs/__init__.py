"""The work: everything nnU-Net does on this machine. Imports nnU-Net where it is needed, never Airflow."""
