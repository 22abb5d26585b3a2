"""From a dataset file to a DAG: the file, the form of a run, what is left to do, and the builder."""
