"""The warm process and the preprocessed phantom as fixtures, for the folders whose tests train."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nnunet_jobs.contract.storage.workspace import Workspace
from support.training import Warm, warm_process, without_models


@pytest.fixture
def warm() -> Warm:
    return warm_process()


@pytest.fixture
def phantom() -> Iterator[Workspace]:
    with without_models() as workspace:
        yield workspace
