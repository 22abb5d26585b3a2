"""Numbers that compare a segmentation with its reference."""
