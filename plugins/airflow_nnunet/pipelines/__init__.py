"""Makes a DAG from a dataset file: reads the file, makes the form of a run, and plans what is left to do."""
