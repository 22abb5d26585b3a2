"""Two models side by side, and another policy replayed, by the hold-out scores that are kept beside the models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nnunet_jobs.__main__ import main
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.promotion import PromotionPolicy
from nnunet_jobs.contract.storage.files import read_json, write_json
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.registry.ledger import Event, append, entries
from nnunet_jobs.registry.promotion import pin, promote, release
from nnunet_jobs.selection.decisions import records_of
from nnunet_jobs.selection.gate.decision import decide
from nnunet_jobs.selection.kept import KeptScores, ModelScores
from nnunet_jobs.selection.replay import replay, replay_text
from nnunet_jobs.selection.two_models import compare_models, comparison_text
from support.promotion import DATASET, hold_out, keep_scores, select

CASES = [f"case_{number:02}" for number in range(30)]
BETTER, WORSE = 0.05, -0.05


def made(workspace: Workspace, gains: Mapping[str, float]) -> None:
    """A dataset of 30 hold-out cases, and models with scores of all of them: 0.8 and a gain, with some noise by case."""
    hold_out(workspace, DATASET, CASES)
    for root, (model, gain) in zip(select(workspace, *gains), gains.items(), strict=True):
        write_json(root / "model.json", {**read_json(root / "model.json"), "hash": f"hash of {model}"})
        keep_scores(workspace, DATASET, model, CASES, gain=gain)


def night(workspace: Workspace, model: str, policy: PromotionPolicy) -> bool:
    """One night's judgement, as the step makes it. Returns whether the model was promoted."""
    champion = workspace.champion(DATASET)
    kept = KeptScores.of_dataset(workspace, DATASET)
    old, new = (kept.of(name) if name else None for name in (champion, model))
    assert not isinstance(old, str)
    assert isinstance(new, ModelScores)
    decision = decide(policy, kept.pairs(old, new), records_of(entries(workspace, DATASET)), datetime.now(UTC))
    facts = {"by": "hold-out", "inputs": f"{champion} {model}", **decision.to_json()}
    append(workspace, DATASET, Event.JUDGED, model=model, before=champion, by="job", why=decision.reason, facts=facts)
    if decision.decision == "promote":
        promote(workspace, DATASET, model, by="job", why=decision.reason, facts=facts)
    return decision.decision == "promote"


def test_two_models_are_compared_by_label_on_the_cases_that_both_have_scores_of(workspace: Workspace) -> None:
    made(workspace, {"a": 0.0, "b": BETTER})
    seen = {"train": "train", CASES[0]: CASES[0]}
    write_json(workspace.model_root("b") / DATASET / "training_cases.json", {"schema": 1, "cases": seen})
    (workspace.model_root("a") / DATASET / "holdout" / ".scores" / f"{CASES[1]}.score.json").unlink()
    found = compare_models(workspace, DATASET, "b", "a")
    assert (found["holdout_cases"], found["seen"], found["without_scores"]) == (30, 1, 1)
    assert (found["compared"]["cases"], found["compared"]["patients"]) == (28, 28)
    assert found["compared"]["gain"] == pytest.approx(BETTER)
    assert found["labels"]["right"]["model"] == pytest.approx(0.75)
    assert found["labels"]["right"]["other"] == pytest.approx(0.7)
    assert found["labels"]["left"]["low"] < found["labels"]["left"]["gain"] < found["labels"]["left"]["high"]
    assert compare_models(workspace, DATASET, "a", "b")["compared"]["gain"] == pytest.approx(-BETTER)
    assert "left out: 1 cases, because one of the models has trained on them" in comparison_text(found)
    assert not any(case in json.dumps(found) for case in CASES)


def test_models_without_scores_of_the_same_images_are_not_compared(workspace: Workspace) -> None:
    made(workspace, {"a": 0.0, "b": BETTER})
    path = workspace.raw_dataset(DATASET) / "manifest.json"
    changed = read_json(path)
    for case in CASES:
        changed["cases"][case]["label"] = "corrected"
    write_json(path, changed)
    with pytest.raises(ConfigError, match="no kept scores of today's hold-out cases"):
        compare_models(workspace, DATASET, "b", "a")
    with pytest.raises(ConfigError, match=f"models of {DATASET}: a, b"):
        compare_models(workspace, DATASET, "b", "c")


def test_the_same_policy_decides_as_it_did_then(workspace: Workspace) -> None:
    made(workspace, {"a": 0.0, "b": WORSE, "c": BETTER, "d": BETTER})
    policy = PromotionPolicy()
    assert [night(workspace, model, policy) for model in "abcd"] == [True, False, True, False]
    found = replay(workspace, DATASET, policy)
    assert [(row["promoted"], row["then"]["promoted"]) for row in found["decisions"]] == [(x, x) for x in (True, False, True, False)]
    assert [row["champion"] for row in found["decisions"]] == [None, "a", "a", "c"]
    judged = [entry for entry in entries(workspace, DATASET) if entry.event is Event.JUDGED]
    assert [row["gain"] for row in found["decisions"]] == [entry.facts["gain"] for entry in judged]
    assert (found["champion"], found["gone"]) == ({"replayed": "c", "then": "c"}, 0)


def test_another_policy_goes_on_from_its_own_champion(workspace: Workspace) -> None:
    made(workspace, {"a": 0.0, "b": WORSE, "c": 0.01})
    for model in "abc":
        night(workspace, model, PromotionPolicy())
    found = replay(workspace, DATASET, PromotionPolicy(promote="always"))
    assert [(row["champion"], row["promoted"]) for row in found["decisions"]] == [(None, True), ("a", True), ("b", True)]
    assert found["promotions"] == {"replayed": 3, "then": 2}
    assert found["decisions"][2]["gain"] == pytest.approx(0.06), "against b, which it would have had"
    assert replay(workspace, DATASET, PromotionPolicy(promote="never"))["champion"] == {"replayed": None, "then": "c"}


def test_what_people_did_is_taken_as_it_was(workspace: Workspace) -> None:
    made(workspace, {"a": 0.0, "b": BETTER, "c": 2 * BETTER})
    never = PromotionPolicy(promote="never")
    promote(workspace, DATASET, "a", by="ada")
    pin(workspace, DATASET, by="ada")
    night(workspace, "b", never)
    release(workspace, DATASET, by="ada")
    night(workspace, "c", never)
    found = replay(workspace, DATASET, PromotionPolicy())
    assert [(row["champion"], row["decision"], row["promoted"]) for row in found["decisions"]] == [
        ("a", "promote", False),
        ("a", "promote", True),
    ]
    assert "The champion was held" in found["decisions"][0]["reason"]


def test_a_model_that_was_held_back_and_not_judged_again_follows_its_first_judgement(workspace: Workspace) -> None:
    made(workspace, {"a": 0.0, "b": BETTER})
    promote(workspace, DATASET, "a", by="ada")
    pin(workspace, DATASET, by="ada")
    night(workspace, "b", PromotionPolicy(promote="never"))
    release(workspace, DATASET, by="ada")
    facts = {"inputs": "a b", "again": True}
    append(workspace, DATASET, Event.JUDGED, model="b", before="a", by="job", why="As before.", facts=facts)
    promote(workspace, DATASET, "b", by="job", facts=facts)
    found = replay(workspace, DATASET, PromotionPolicy())
    assert [(row["promoted"], row["then"]["promoted"]) for row in found["decisions"]] == [(False, False), (True, True)]
    assert found["decisions"][0]["low"] == found["decisions"][1]["low"]


def test_a_night_whose_scores_are_gone_is_named_and_taken_as_it_was(workspace: Workspace) -> None:
    made(workspace, {"a": 0.0, "b": BETTER, "c": WORSE})
    for model in "abc":
        night(workspace, model, PromotionPolicy())
    (workspace.model_root("b") / DATASET / "model.json").unlink()
    found = replay(workspace, DATASET, PromotionPolicy(promote="always"))
    assert [row["gone"] for row in found["decisions"]] == [None, "the card of model b is gone", "the card of model b is gone"]
    assert [row["promoted"] for row in found["decisions"]] == [True, True, False]
    assert found["gone"] == 2
    assert "2 of 3 judgements could not be replayed" in replay_text(found)


def test_the_commands_print_both_and_refuse_what_they_cannot_use(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(workspace, {"a": 0.0, "b": BETTER})
    for model in "ab":
        night(workspace, model, PromotionPolicy())
    where = tmp_path / "workspace.json"
    write_json(where, workspace.to_json())
    policy = tmp_path / "policy.yaml"
    policy.write_text("promote: if_better\nmin_gain: 0.2\n")

    def typed(*words: str) -> tuple[int, str, str]:
        code = main(["model", "--workspace-json", str(where), *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    code, out, _ = typed("--json", "compare", "5", "b", "a")
    assert (code, round(json.loads(out)["compared"]["gain"], 6)) == (0, BETTER)
    code, out, _ = typed("replay", "5", "--policy", str(policy))
    assert code == 0
    assert "b: keep (then: promoted)" in out
    assert "1 promotions, then 2; champion a, then b" in out
    policy.write_text('{"promot": "ask"}')
    for words, said in (
        (("compare", "5", "b"), "compare needs it"),
        (("list", "5", "--policy", "x"), "list does not take it"),
        (("replay", "5"), "replay needs it"),
        (("replay", "5", "--policy", str(policy)), "did you mean 'promote'?"),
        (("replay", "5", "--policy", str(where.with_name("none"))), "No such file"),
    ):
        code, _, err = typed(*words)
        assert (code, said in err) == (3, True), err
