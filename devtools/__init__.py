"""Tools for developers of this project: the demo, a private Airflow, pages made from schemas, and a test bed of small
data, models and servers that tests and benchmarks share. They are not in the wheel."""
