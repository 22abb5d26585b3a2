"""The layouts a source may have, one module each, in the order in which they are looked for."""

from nnunet_jobs.dataset.layouts import bids, csv_mapping, decathlon, dicom, folders, nnunet, nnunet_v1
from nnunet_jobs.dataset.layouts.base import Layout

_IN_ORDER = (dicom, csv_mapping, nnunet_v1, decathlon, nnunet, bids, folders)
LAYOUTS: dict[str, Layout] = {module.LAYOUT.name: module.LAYOUT for module in _IN_ORDER}
