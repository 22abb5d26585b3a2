"""What runs and when: Airflow operators, triggers, DAGs and commands for nnU-Net. Never imports torch, nnunetv2 or numpy."""
