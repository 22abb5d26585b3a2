"""Small data sets, models of random weights, and servers of their own processes, for tests and benchmarks."""
