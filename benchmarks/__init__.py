"""Benchmarks that compare this project with stock nnU-Net. Each module prints a table; none asserts a time."""
