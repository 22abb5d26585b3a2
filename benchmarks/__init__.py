"""Side-by-side measurements against stock nnU-Net. Each module prints a table with ratios; nothing here asserts a time."""
