"""Which models stay in memory: promoted ones and those served by name push others out, guests never do; room is made before loading."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from devtools.testbed.prediction import job_dir
from devtools.testbed.serving import make_model, make_workspace
from devtools.testbed.stages import DATASET
from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import DataError
from nnunet_jobs.contract.storage.files import read_json, repoint, write_json
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.prediction.model import resolve_model
from nnunet_jobs.prediction.reading import ReadHere
from nnunet_jobs.prediction.settings import Settings
from nnunet_jobs.predictor_server.models import NoRoom, WarmModels, expected_bytes
from support.foreign_warnings import FOREIGN_WARNINGS

pytestmark = FOREIGN_WARNINGS


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Three models of one size, of which ``m1`` is promoted."""
    workspace = make_workspace(tmp_path_factory.mktemp("models") / "work")
    for seed, model in enumerate(("m2", "m3"), 2):
        make_model(workspace, model, seed=seed, promote=False)
    return workspace


@pytest.fixture
def home(workspace: Workspace) -> Iterator[Workspace]:
    yield workspace
    promote(workspace, "m1")


class Small(WarmModels):
    """Its limit in bytes: the models here are far below a MiB."""

    def __init__(self, workspace: Workspace, *, models: int, served: tuple[tuple[str, str], ...] = ()) -> None:
        context = StepContext(workspace=workspace, job=job_dir(workspace), cpus=1)
        super().__init__(workspace, context, Settings(), limit_mib=0, reading=ReadHere(), served=served)
        self.limit_bytes = models * expected_bytes(resolve_model(workspace, DATASET, "m1")) + 1


def promote(workspace: Workspace, model: str) -> None:
    repoint(workspace.champion_link(DATASET), workspace.model_root(model) / DATASET)


def names(models: WarmModels) -> list[str]:
    return [model for _, model in models.warm()]


def test_a_guest_is_loaded_where_there_is_room_and_never_pushes(home: Workspace) -> None:
    models = Small(home, models=2)
    models.get(DATASET)
    models.get(DATASET, "m2")
    assert names(models) == ["m1", "m2"]
    with pytest.raises(NoRoom, match="m3 is not promoted and does not fit"):
        models.get(DATASET, "m3")
    assert names(models) == ["m1", "m2"]
    assert models.get(DATASET).model.model == "m1"


def test_a_promoted_model_pushes_guests_first(home: Workspace) -> None:
    models = Small(home, models=2)
    models.get(DATASET)
    models.get(DATASET, "m2")  # used later than the promoted one
    promote(home, "m3")
    models.refresh()
    assert names(models) == ["m1", "m3"]
    assert models.get(DATASET).model.model == "m3"


def test_what_the_server_was_told_to_serve_pushes_and_stays(home: Workspace) -> None:
    models = Small(home, models=1, served=((DATASET, "m2"),))
    models.get(DATASET)
    assert models.get(DATASET, "m2").model.model == "m2"
    assert names(models) == ["m2"]
    with pytest.raises(NoRoom):
        models.get(DATASET, "m3")


def test_where_both_do_not_fit_the_earlier_model_leaves_before_the_new_one_is_loaded(
    home: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnunet_jobs.predictor_server import models as room

    models = Small(home, models=1)
    models.get(DATASET)
    there: list[list[str]] = []
    real = room.Predictor

    def loading(*arguments: object, **named: object) -> object:
        there.append(names(models))
        return real(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(room, "Predictor", loading)
    promote(home, "m2")
    models.refresh()
    assert there == [[]]
    assert names(models) == ["m2"]


def test_a_damaged_new_model_pushes_nothing_out_and_the_earlier_one_answers(home: Workspace) -> None:
    models = Small(home, models=1)
    models.get(DATASET)
    root = home.model_root("m3") / DATASET
    [weights] = [root / name for name in read_json(root / "model.json")["files"] if name.endswith(".pth")]
    content = weights.read_bytes()
    try:
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        promote(home, "m3")
        models.refresh()
        assert "goes on answering" in models.problems[DATASET]
        assert names(models) == ["m1"]
        assert models.get(DATASET).model.model == "m1"
        with pytest.raises(DataError):
            models.get(DATASET, "m3")
    finally:
        weights.write_bytes(content)
    models.refresh()
    assert models.problems == {}
    assert models.get(DATASET).model.model == "m3"


def test_fault_67_an_unforeseen_error_of_one_dataset_is_no_end(home: Workspace) -> None:
    models = Small(home, models=3)
    models.get(DATASET)
    card = home.model_root("m2") / DATASET / "model.json"
    whole = read_json(card)
    try:
        write_json(card, {name: value for name, value in whole.items() if name != "selection"})
        promote(home, "m2")
        models.refresh()
        assert "bug; the server's log has the reason" in models.problems[DATASET]
        assert models.get(DATASET).model.model == "m1"
    finally:
        write_json(card, whole)
    models.refresh()
    assert models.get(DATASET).model.model == "m2"
