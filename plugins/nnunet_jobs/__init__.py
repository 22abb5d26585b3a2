"""Does everything that nnU-Net does on this machine. Imports nnU-Net where it is needed, and never Airflow."""
