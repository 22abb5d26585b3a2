"""Who is the champion, who may change that, and what the ledger says of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nnunet_jobs.contract.failure import ConfigError, DataError
from nnunet_jobs.contract.storage.files import repoint, write_json
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.registry import promotion
from nnunet_jobs.registry.ledger import Event, append, entries, ledger_path
from nnunet_jobs.registry.moves import OUTSIDE
from nnunet_jobs.registry.promotion import Promotion, demote, held, pin, promote, promote_if, release, retire, rollback
from nnunet_jobs.registry.verification import verify
from support.promotion import DATASET, select

MOVED, KEPT, ELSEWHERE = (Promotion(promoted=ours, is_champion=there) for ours, there in ((True, True), (False, True), (False, False)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """A policy's answer."""

    promote: bool
    why: str = "It was compared."
    facts: Mapping[str, Any] = field(default_factory=lambda: {"gain": 0.1})


def yes(champion: str | None) -> Decided:
    """A policy that promotes everything."""
    return Decided(promote=True)


@pytest.fixture
def home(workspace: Workspace) -> Workspace:
    """Three selected models, of which ``a`` was promoted, and then ``b``."""
    select(workspace, "a", "b", "c")
    promote(workspace, DATASET, "a", by="Ada", why="The first.")
    promote(workspace, DATASET, "b", by="Ada", why="The second.")
    return workspace


def told(workspace: Workspace) -> list[tuple[str, str | None, str | None, str]]:
    """The ledger in short; it is whole."""
    assert [verdict.faults for verdict in verify(ledger_path(workspace, DATASET))] == [()]
    return [(entry.event, entry.model, entry.before, entry.by) for entry in entries(workspace, DATASET)]


def test_promotions_are_written_down_with_the_card_that_they_relied_on(home: Workspace) -> None:
    assert home.champion(DATASET) == "b"
    assert told(home) == [("promoted", "a", None, "Ada"), ("promoted", "b", "a", "Ada")]
    assert list(entries(home, DATASET)[1].files) == [f".versions/b/{DATASET}/model.json"]
    assert promote(home, DATASET, "b") is None
    assert len(told(home)) == 2


def test_a_rollback_goes_to_the_champion_before_and_holds_until_it_is_released(home: Workspace, tmp_path: Path) -> None:
    assert held(home, DATASET) is None
    entry = rollback(home, DATASET, by="Grace", why="It misses small lesions.")
    assert (entry.event, entry.model, entry.before) == (Event.ROLLED_BACK, "a", "b")
    assert home.champion(DATASET) == "a"
    reason = held(home, DATASET)
    assert reason is not None
    assert "b was rolled back to a" in reason
    assert "Grace (It misses small lesions)" in reason
    kept = promote_if(home, DATASET, "c", yes, by="night 1", record=tmp_path / "r.json")
    assert kept == ELSEWHERE
    assert kept.why == reason
    assert told(home)[-1] == ("judged", "c", "a", "night 1")
    with pytest.raises(ConfigError, match="knows no champion before a"):
        rollback(home, DATASET)
    promote(home, DATASET, "c", by="Ada")
    assert entries(home, DATASET)[-1].facts["although"] == reason
    assert held(home, DATASET) == reason, "a person's promotion does not lift the hold"
    assert release(home, DATASET) is not None
    assert release(home, DATASET) is None
    assert held(home, DATASET) is None
    assert promote_if(home, DATASET, "b", yes, by="night 2", record=tmp_path / "r.json") == MOVED


def test_a_rollback_can_name_an_earlier_champion(home: Workspace) -> None:
    promote(home, DATASET, "c")
    with pytest.raises(ConfigError, match=r"was never the champion of .*; earlier ones: b, a"):
        rollback(home, DATASET, "d")
    with pytest.raises(ConfigError, match="is the champion already"):
        rollback(home, DATASET, "c")
    rollback(home, DATASET, "a")
    assert home.champion(DATASET) == "a"


def test_two_rollbacks_go_further_back(home: Workspace) -> None:
    promote(home, DATASET, "c")
    assert rollback(home, DATASET).model == "b"
    assert rollback(home, DATASET).model == "a"


def test_a_pin_holds_the_champion(home: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the champion of .* is b"):
        pin(home, DATASET, "a")
    pin(home, DATASET, "b", by="Ada", why="A study is running.")
    kept = promote_if(home, DATASET, "c", yes, by="night", record=tmp_path / "r.json")
    assert kept == ELSEWHERE
    assert "b was pinned" in kept.why


def test_a_retired_model_is_never_the_champion_again(home: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is the champion"):
        retire(home, DATASET, "b")
    with pytest.raises(ConfigError, match=r"models of .*: a, b, c"):
        retire(home, DATASET, "unknown")
    assert retire(home, DATASET, "a", by="Ada", why="Wrong labels.") is not None
    assert retire(home, DATASET, "a") is None
    for attempt in (lambda: promote(home, DATASET, "a"), lambda: rollback(home, DATASET)):
        with pytest.raises(ConfigError, match=r"a was retired on .* by Ada"):
            attempt()
    assert "was retired" in promote_if(home, DATASET, "a", yes, by="night", record=tmp_path / "r.json").why
    assert home.champion(DATASET) == "b"


def test_a_demoted_champion_leaves_none(home: Workspace) -> None:
    assert not demote(home, DATASET, "a")
    assert demote(home, DATASET, "b", by="withdrawal")
    assert home.champion(DATASET) is None
    assert told(home)[-1] == ("demoted", "b", "b", "withdrawal")
    assert rollback(home, DATASET, "a").before is None


def test_a_link_that_was_moved_by_hand_is_written_down_by_the_next_operation(home: Workspace) -> None:
    repoint(home.champion_link(DATASET), home.model_root("c") / DATASET)
    assert promotion.settle(home, DATASET) is None
    assert told(home)[-1] == ("promoted", "c", "b", OUTSIDE)
    home.champion_link(DATASET).unlink()
    promotion.settle(home, DATASET)
    assert told(home)[-1] == ("demoted", "c", "c", OUTSIDE)
    promotion.settle(home, DATASET)
    assert len(told(home)) == 4


def test_a_champion_from_before_the_ledger_begins_it(workspace: Workspace) -> None:
    select(workspace, "old", "new")
    repoint(workspace.champion_link(DATASET), workspace.model_root("old") / DATASET)
    promote(workspace, DATASET, "new", by="Ada")
    assert told(workspace) == [("promoted", "old", None, OUTSIDE), ("promoted", "new", "old", "Ada")]
    assert rollback(workspace, DATASET).model == "old"


def test_what_must_not_be_promoted_is_refused_before_anything_is_written(home: Workspace) -> None:
    before = told(home)
    with pytest.raises(ConfigError, match=r"model.json is missing; models of Dataset005_Phantom: a, b, c"):
        promote(home, DATASET, "unknown")
    (home.model_root("c") / DATASET / "plans.json").write_text("changed")
    with pytest.raises(DataError, match=r"differ from its card or are missing: plans.json"):
        promote(home, DATASET, "c")
    write_json(home.model_root("a") / DATASET / "withdrawn.json", {"cases": {"x": {}}})
    with pytest.raises(ConfigError, match="case x was withdrawn"):
        promote(home, DATASET, "a")
    assert told(home) == before


def test_somebodys_own_folder_in_the_links_place_stays(workspace: Workspace) -> None:
    select(workspace, "a")
    own = workspace.champion_link(DATASET)
    own.mkdir()
    with pytest.raises(ConfigError, match="is not a link"):
        promote(workspace, DATASET, "a")
    assert not ledger_path(workspace, DATASET).exists()


def test_a_policy_decides_again_where_the_champion_changed_meanwhile(home: Workspace, tmp_path: Path) -> None:
    seen = []

    def slowly(champion: str | None) -> Decided:
        seen.append(champion)
        if len(seen) == 1:
            promote(home, DATASET, "a", by="somebody faster")
        return Decided(promote=champion == "a")

    assert promote_if(home, DATASET, "c", slowly, by="night", record=tmp_path / "r.json") == MOVED
    assert seen == ["b", "a"]
    assert told(home)[-3:] == [("promoted", "a", "b", "somebody faster"), ("judged", "c", "a", "night"), ("promoted", "c", "a", "night")]


def test_a_judgement_is_written_once_for_a_run_and_its_retries(home: Workspace, tmp_path: Path) -> None:
    for run in ("night 1", "night 1", "night 2"):
        assert promote_if(home, DATASET, "c", lambda _: Decided(promote=False), by=run, record=tmp_path / f"{run}.json") == ELSEWHERE
    assert [line[3] for line in told(home) if line[0] == "judged"] == ["night 1", "night 2"]


def test_a_run_that_promoted_a_model_does_not_take_a_later_promotion_for_its_own(home: Workspace, tmp_path: Path) -> None:
    record = tmp_path / "r.json"
    assert promote_if(home, DATASET, "c", yes, by="night", record=record) == MOVED
    assert promote_if(home, DATASET, "c", yes, by="night", record=record) == MOVED, "a killed attempt's retry"
    rollback(home, DATASET)
    promote(home, DATASET, "c", by="Ada")
    assert promote_if(home, DATASET, "c", yes, by="night", record=record) == KEPT


def test_a_card_that_was_written_again_is_listed_again(home: Workspace, tmp_path: Path) -> None:
    card = home.model_root("b") / DATASET / "model.json"
    write_json(card, {**json.loads(card.read_text()), "recipe": "another"})
    assert "was changed" in verify(ledger_path(home, DATASET))[0].faults[0]
    assert promote_if(home, DATASET, "b", yes, by="night", record=tmp_path / "r.json") == KEPT
    assert told(home)[-1] == ("registered", "b", None, "night")


def test_a_card_in_which_the_judge_wrote_its_decision_is_listed_with_it(home: Workspace, tmp_path: Path) -> None:
    card = home.model_root("c") / DATASET / "model.json"

    def keep(champion: str | None) -> Decided:
        write_json(card, {**json.loads(card.read_text()), "decision": "keep"})
        return Decided(promote=False)

    assert promote_if(home, DATASET, "c", keep, by="night", record=tmp_path / "r.json") == ELSEWHERE
    assert told(home)[-2:] == [("judged", "c", "b", "night"), ("registered", "c", None, "night")]


@pytest.mark.parametrize("act", [rollback, lambda *where: promote(*where, "a")])
def test_a_damaged_ledger_keeps_policies_from_promoting_and_no_person(
    home: Workspace, tmp_path: Path, act: Callable[[Workspace, str], object]
) -> None:
    path = ledger_path(home, DATASET)
    append(home, DATASET, Event.JUDGED, by="night", why="It was compared.", model="c")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\x00\n"]))
    with pytest.raises(ConfigError, match="line 3 cannot be read"):
        promote_if(home, DATASET, "c", yes, by="night", record=tmp_path / "r.json")
    act(home, DATASET)
    assert home.champion(DATASET) == "a"
    assert verify(path)[0].faults == ("Line 3 was changed: its hash is not that of its content.",)
