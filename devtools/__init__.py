"""Tools for those who develop this project: the demo, a private Airflow, pages made from schemas, and a test bed
(small data, models and servers) that tests and benchmarks share. Not in the wheel."""
