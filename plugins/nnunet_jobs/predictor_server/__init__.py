"""The predictor server: models stay in memory, a request is an image, the answer is its segmentation. See :mod:`.command`."""
