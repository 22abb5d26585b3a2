"""Reads image files (NIfTI, MetaImage, NRRD, pictures) once, completely and strictly."""
