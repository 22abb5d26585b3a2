"""Paths of the workspace: who may name what, and which dataset an id means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.storage.files import repoint
from nnunet_jobs.contract.storage.workspace import Workspace, dataset_name


def test_fault_36_ids_100_and_1000_each_resolve_to_themselves(workspace: Workspace) -> None:
    for dataset_id in (1, 10, 100, 1000):
        (Path(workspace.raw) / dataset_name(dataset_id, "Same")).mkdir(parents=True)
    assert workspace.resolve_dataset(100) == "Dataset100_Same"
    assert workspace.resolve_dataset("1000") == "Dataset1000_Same"
    assert workspace.resolve_dataset("1") == "Dataset001_Same"
    assert workspace.resolve_dataset("Dataset010_Same") == "Dataset010_Same"


@pytest.mark.parametrize("dataset", [7, "7", "Dataset007_No", "Same", "../Dataset001_Same", "Dataset001_Same/..", "²"])
def test_an_unknown_dataset_is_refused_with_the_known_ones(workspace: Workspace, dataset: str | int) -> None:
    (Path(workspace.raw) / "Dataset001_Same").mkdir(parents=True)
    with pytest.raises(ConfigError, match="Dataset001_Same"):
        workspace.resolve_dataset(dataset)


@pytest.mark.parametrize("name", ["", "a b", "a/b", ";$(id)", "a\nb", "../up", "é", "-x", "x" * 101])
def test_fault_53_names_that_file_systems_or_nnunet_cannot_carry_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name="):
        dataset_name(4, name)


def test_fault_52_paths_are_judged_after_links_and_dots(workspace: Workspace, tmp_path: Path) -> None:
    narrow = Workspace.below(tmp_path / "work", input_roots=(str(tmp_path / "in"),))
    inside = tmp_path / "in" / "case"
    inside.mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    os.symlink(tmp_path / "secret", tmp_path / "in" / "door")
    assert narrow.confine_input(inside, field="source") == inside.resolve()
    for outside in (tmp_path / "secret", tmp_path / "in" / ".." / "secret", tmp_path / "in" / "door", "relative", "/etc\n/passwd"):
        with pytest.raises(ConfigError, match="source="):
            narrow.confine_input(outside, field="source")
    with pytest.raises(ConfigError, match="output_roots"):
        narrow.confine_output(inside, field="output")


def test_a_link_is_repointed_in_one_step_and_never_replaces_data(workspace: Workspace) -> None:
    name = "Dataset001_A"
    for version in ("v1", "v2"):
        (workspace.preprocessed_root(version) / name).mkdir(parents=True)
    assert workspace.current_version(name) is None
    for version in ("v1", "v2", "v1"):
        repoint(workspace.preprocessed_link(name), workspace.preprocessed_root(version) / name)
        assert workspace.current_version(name) == version
    real = workspace.champion_link(name)
    real.mkdir(parents=True)
    with pytest.raises(FileExistsError, match="move it away"):
        repoint(real, workspace.model_root("m1") / name)


def test_a_version_name_cannot_leave_its_folder(workspace: Workspace) -> None:
    for version in ("..", "a/b", "", ".hidden"):
        with pytest.raises(ConfigError, match="version="):
            workspace.preprocessed_root(version)


def test_the_environment_pins_a_version_and_a_model(tmp_path: Path) -> None:
    workspace = Workspace.below(tmp_path, trainer_paths=("/a", "/b"))
    environment = workspace.nnunet_environment(version="v1", model="m1")
    assert environment["nnUNet_preprocessed"].endswith("nnUNet_preprocessed/.versions/v1")
    assert environment["nnUNet_results"].endswith("nnUNet_results/.versions/m1")
    assert environment["nnUNet_extTrainer"] == "/a:/b"
    assert Workspace.from_json(workspace.to_json()) == workspace
