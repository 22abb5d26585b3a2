"""Lists the layouts that a source may have, one module each, in the order in which they are tried; other distributions add more.

A distribution adds a layout by an entry point, whose name is the layout's and whose value is a :class:`Layout`::

[project.entry-points."nnunet_jobs.layouts"]
per_case = "nnunet_per_case:LAYOUT"
"""

from collections.abc import Iterator

from nnunet_jobs.contract import third_party
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.register import LAYOUTS_GROUP
from nnunet_jobs.dataset.layouts import bids, csv_mapping, decathlon, dicom, folders, nnunet, nnunet_v1
from nnunet_jobs.dataset.layouts.base import Layout

_IN_ORDER = (dicom, csv_mapping, nnunet_v1, decathlon, nnunet, bids, folders)
LAYOUTS: dict[str, Layout] = {module.LAYOUT.name: module.LAYOUT for module in _IN_ORDER}


def get_layout(name: str) -> Layout:
    """Return the layout of this name.

    Raises:
        ConfigError: There is no such layout, or one of another distribution cannot be used.
    """
    found = third_party.load(LAYOUTS_GROUP, name, field="layout", ours=LAYOUTS)
    if found is None:
        if name not in LAYOUTS:
            raise ConfigError(field="layout", value=name, problem=f"must be one of {', '.join(layout.name for layout in layouts())}")
        return LAYOUTS[name]
    loaded, where = found
    if not isinstance(loaded, Layout):
        problem, fix = f"{where} is not a nnunet_jobs.dataset.layouts.base.Layout", "correct the entry point"
        raise ConfigError(field="layout", value=name, problem=problem, fix=fix)
    if loaded.name != name:
        problem, fix = f"{where} has the name {loaded.name!r}", "give the entry point and its layout the same name"
        raise ConfigError(field="layout", value=name, problem=problem, fix=fix)
    return loaded


def layouts() -> Iterator[Layout]:
    """Yield all layouts in the order in which they are tried. Those of other distributions come last, by name, and are loaded then.

    Raises:
        ConfigError: A layout of another distribution cannot be used.
    """
    yield from LAYOUTS.values()
    for name in third_party.found(LAYOUTS_GROUP):
        yield get_layout(name)
