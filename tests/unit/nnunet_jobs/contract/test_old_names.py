"""Programs that were written for version 0.1.0 import these modules; they stay until 0.3.0."""

from __future__ import annotations

import importlib

import pytest

OLD = {
    "jobdir": ("job.folder", "JobDir"),
    "params": ("steps.params", "STEPS"),
    "workspace": ("storage.workspace", "Workspace"),
    "segment_codes": ("steps.segment_codes", "parse_segment_codes"),
}


@pytest.mark.parametrize("old", OLD)
def test_an_old_name_gives_the_same_object_and_says_where_it_is_now(old: str) -> None:
    room, name = OLD[old]
    with pytest.warns(DeprecationWarning, match=f"import from nnunet_jobs.contract.{room}"):
        module = importlib.import_module(f"nnunet_jobs.contract.{old}")
    assert getattr(module, name) is getattr(importlib.import_module(f"nnunet_jobs.contract.{room}"), name)
