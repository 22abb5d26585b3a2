"""DICOM in and out: series found and sorted, geometry judged, images and labels converted, segmentations written. No Airflow, no torch."""
