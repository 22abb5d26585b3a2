"""The dataset store lists and checks a source, chooses the hold-out, and brings the cases into nnUNet_raw."""
