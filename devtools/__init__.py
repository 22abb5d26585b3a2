"""Tools for those who develop this project: the demo, a private Airflow, pages made from schemas. Not in the wheel."""
