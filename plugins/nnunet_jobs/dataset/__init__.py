"""The dataset store: what a source holds, whether it is sound, who is held out, and how it gets into nnUNet_raw."""
