"""Makes the page on which a person reviews a dataset: numbers and pictures of each case, unusual cases, and faults."""
