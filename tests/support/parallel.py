"""Which tests go to one worker of pytest-xdist: those of one file, and those that share something expensive across files."""

from __future__ import annotations

import pytest
from xdist.scheduler import LoadScopeScheduling

# A file that is not below any of these is a unit of its own.
SHARED = {
    "one Airflow, and the built image": ("tests/e2e/", "tests/packaging/test_images.py"),
    "one Docker engine": ("tests/contract/", "tests/chaos/test_docker"),
}


class ByRoom(LoadScopeScheduling):
    """Hands out whole files or rooms, in the order of the collection."""

    def __init__(self, config: pytest.Config, log: object = None) -> None:
        config.option.loadscopereorder = False  # the collection's order is better than the number of tests
        super().__init__(config, log)  # type: ignore[arg-type]

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((room for room, places in SHARED.items() if file.startswith(places)), file)
