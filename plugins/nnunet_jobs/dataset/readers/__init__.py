"""Image files read once to the last byte, strictly: NIfTI, MetaImage and NRRD, pictures."""
