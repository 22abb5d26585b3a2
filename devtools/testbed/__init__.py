"""Small datasets, models with random weights, and servers in processes, for tests and benchmarks."""
