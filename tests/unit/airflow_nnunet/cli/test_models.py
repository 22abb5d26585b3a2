"""``airflow nnunet model``: what is typed reaches the registry, by the interpreter of the jobs."""

from __future__ import annotations

import json
from pathlib import Path

from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.registry.ledger import ledger_path
from nnunet_jobs.registry.verification import verify
from support.airflow import environment, run
from support.promotion import DATASET, select


def test_a_champion_is_promoted_rolled_back_held_and_released(home: Path) -> None:
    env = environment(home, input_roots=str(home))
    workspace = Workspace.below(home / "nnunet", input_roots=(str(home),))
    workspace.raw_dataset(DATASET).mkdir(parents=True)
    select(workspace, "a", "b")
    typed = ["-m", "airflow_nnunet", "model"]
    unknown = run([*typed, "promote", "Phantom", "c"], env)
    assert unknown.returncode == 3
    assert "models of Dataset005_Phantom: a, b" in unknown.stderr
    for model in ("a", "b"):
        done = run([*typed, "promote", "5", model, "--user", "Ada", "--why", "It was approved."], env)
        assert done.returncode == 0, done.stderr
    assert f"{DATASET}: promoted b; the champion is b" in done.stdout
    back = run(["-m", "airflow", "nnunet", "model", "rollback", "Phantom", "--json"], env)
    assert back.returncode == 0, back.stderr
    answer = json.loads(back.stdout)
    assert (answer["champion"], answer["entry"]["event"], answer["entry"]["before"]) == ("a", "rolled_back", "b")
    assert "b was rolled back to a" in answer["held"]
    retired = run([*typed, "retire", "Phantom", "b", "--user", "Ada", "--why", "Wrong labels."], env)
    assert retired.returncode == 0, retired.stderr
    listed = json.loads(run([*typed, "list", "Phantom", "--json"], env).stdout)
    assert [(row["model"], row["champion"], bool(row["retired"])) for row in listed["models"]] == [("a", True, False), ("b", False, True)]
    shown = run([*typed, "show", "Phantom"], env).stdout
    assert "promoted a by Ada: It was approved." in shown
    assert "Held until a person releases it" in shown
    assert run([*typed, "release", "Phantom"], env).returncode == 0
    assert json.loads(run([*typed, "show", "Phantom", "--json"], env).stdout)["held"] is None
    policy = home / "policy.yaml"
    policy.write_text("promote: always\n")
    replayed = run([*typed, "replay", "Phantom", "--policy", policy], env)
    assert (replayed.returncode, "is missing; register the dataset" in replayed.stderr) == (3, True), replayed.stderr
    compared = run([*typed, "compare", "Phantom", "a", "c", "--json"], env)
    assert (compared.returncode, "models of Dataset005_Phantom: a, b" in compared.stderr) == (3, True), compared.stderr
    assert verify(ledger_path(workspace, DATASET))[0].faults == ()
