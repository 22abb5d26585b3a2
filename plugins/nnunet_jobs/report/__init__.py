"""The page that a person judges a dataset by: numbers and pictures of each case, what stands out, the faults."""
