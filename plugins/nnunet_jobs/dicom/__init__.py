"""Reads DICOM series, checks their geometry, converts images and labels, and writes segmentations. Imports no Airflow and no torch."""
