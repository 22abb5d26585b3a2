"""Training: the layer over any nnU-Net trainer class, verified checkpoints, validation, and what makes a fold complete."""
