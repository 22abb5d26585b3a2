"""The predictor server keeps models in memory; a request is an image, and the answer is its segmentation."""
