"""What README, docs and docstrings show: every command is one that there is, with options that it takes, and every piece of code runs.

Commands that need a whole site are run elsewhere: ``make demo`` and ``make test`` by people and CI, the REST calls by
``tests/e2e/test_rest_calls.py``, Compose files by ``tests/packaging``.
"""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from airflow_nnunet.__main__ import build_parser
from devtools.testbed.serving import DATASET, make_model, make_workspace
from nnunet_jobs.__main__ import build_parser as jobs_parser
from nnunet_jobs.__main__ import main as jobs_main
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.registry.ledger import entries
from support.promotion import hold_out, keep_scores
from support.snippets import PROJECT, Snippet, said_in_passing, snippets, words

CONSOLE = [snippet for snippet in snippets() if snippet.language == "console"]
# Programs that are not ours; what they are given (files of ours) is looked at.
FOREIGN = ("docker", "kubectl", "nvidia-smi", "curl", "export", "pip", "python3", "source", "uv")


def accepted(line: str) -> None:
    """Fails with argparse's own words when a command of ours would not be taken."""
    found = words(line)
    while found and "=" in found[0] and not found[0].startswith("-"):  # variables of that call
        found.pop(0)
    if found[:2] == ["airflow", "nnunet"]:
        build_parser().parse_args(found[2:])
    elif found[:3] == ["python", "-m", "airflow_nnunet"]:
        build_parser().parse_args(found[3:])
    elif found[:3] == ["python", "-m", "pytest"]:
        assert (PROJECT / found[3]).exists(), line
    elif found[:2] == ["python", "-m"] and found[2].startswith("devtools."):
        assert (PROJECT / f"{found[2].replace('.', '/')}.py").is_file(), line
    else:
        assert found[:3] == ["python", "-m", "nnunet_jobs"], line
        jobs_parser().parse_args(found[3:])


def celery_worker_takes(called: list[str]) -> bool:
    """Airflow's own parser has Celery's commands only where Celery is the executor, so its provider's declaration is asked."""
    from airflow.providers.celery.cli.definition import CELERY_COMMANDS

    (worker,) = (command for command in CELERY_COMMANDS if command.name == called[0])
    flags = {flag for argument in worker.args for flag in argument.flags}
    return {word for word in called if word.startswith("--")} <= flags


@pytest.mark.parametrize("snippet", CONSOLE, ids=lambda snippet: snippet.text[:60])
def test_every_line_of_a_block_is_a_command_that_there_is(snippet: Snippet) -> None:
    line = snippet.text
    called = [word for word in words(line) if not re.match(r"[A-Z0-9_]+=", word)]
    if not called or "$(" in line:
        return  # sets a variable for the calls below it
    program = called[0]
    if re.match(r"[A-Za-z0-9]+: \{", line):
        assert yaml.safe_load(line)
        return
    if program == "make":
        target = words(line)[1]
        done = subprocess.run(["make", "--dry-run", "--silent", target], cwd=PROJECT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    elif program == "pip":
        known = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        (extras,) = re.findall(r"airflow-provider-nnunet\[([a-z,]+)\]", line)
        assert set(extras.split(",")) <= set(known)
    elif program == "airflow" and called[1] == "celery":
        assert celery_worker_takes(called[2:])
    elif program == "airflow" and called[1] != "nnunet":
        from airflow.cli.cli_parser import get_parser

        get_parser().parse_args(called[1:])
    elif program in ("airflow", "python"):
        accepted(line)
    else:
        assert program in FOREIGN, f"no test knows {program!r}; add one"
    for name in re.findall(r"(?:include|docker)/[\w./-]+\.\w+", line):
        assert (PROJECT / name).is_file(), f"{snippet.page} names {name}"


def test_commands_in_running_text_are_commands_that_there_are() -> None:
    groups = {"dataset", "model"}
    ours = set(re.findall(r"^    (\w[\w-]*)", build_parser().format_help(), re.MULTILINE)) | groups
    theirs = set(jobs_parser()._subparsers._group_actions[0].choices)  # type: ignore[union-attr, arg-type]
    wrong = []
    for path, command in said_in_passing():
        _, _, rest = command.partition("nnunet ") if command.startswith("airflow") else command.partition("_nnunet ")
        known = ours
        if "-m nnunet_jobs" in command:
            rest, known = command.partition("nnunet_jobs ")[2], theirs
        name = re.match(r"[a-z-]+(?:\|[a-z-]+)*", rest)
        if name and not set(name[0].split("|")) <= known:
            wrong.append(f"{path}: {command}")
    assert wrong == []


@pytest.mark.parametrize("snippet", [s for s in snippets() if s.language == "yaml"], ids=lambda snippet: snippet.page)
def test_a_dataset_file_that_is_shown_is_accepted(snippet: Snippet, tmp_path: Path) -> None:
    if "dataset:" not in snippet.text:
        assert yaml.safe_load(snippet.text) is not None
        return
    from airflow_nnunet.pipelines.dag_builder import check_datasets

    (tmp_path / "shown.yaml").write_text(snippet.text)
    check_datasets(tmp_path)


def test_the_rollback_that_is_shown_moves_the_link(tmp_path: Path) -> None:
    (shown,) = [snippet.text for snippet in snippets() if snippet.language == "python" and "promote(" in snippet.text]
    workspace = make_workspace(tmp_path / "nnunet")
    for number, model in enumerate(("first", "second")):
        make_model(workspace, model, seed=number)
    assert workspace.champion(DATASET) == "second"
    (model_id,) = re.findall(r'"([0-9a-f]{16})"', shown)
    code = shown.replace("/data/nnunet", str(tmp_path / "nnunet")).replace("Dataset007_Liver", DATASET).replace(model_id, "first")
    exec(compile(code, "promote-and-roll-back.md", "exec"), {})
    assert Workspace.below(tmp_path / "nnunet").champion(DATASET) == "first"


def test_the_model_commands_of_the_how_to_do_what_it_says(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the page's order, by the command that ``airflow nnunet model`` runs."""
    workspace = make_workspace(tmp_path / "nnunet")
    hold_out(workspace, DATASET, ["one", "two"])
    for number, model in enumerate(("first", "second")):
        make_model(workspace, model, seed=number, promote=False)
        keep_scores(workspace, DATASET, model, ["one", "two"], gain=0.1 * number)
    monkeypatch.chdir(tmp_path)
    (policy,) = [snippet.text for snippet in snippets() if snippet.language == "yaml" and "margin: 0.005" in snippet.text]
    (tmp_path / "policy.yaml").write_text(policy)
    (tmp_path / "workspace.json").write_text(json.dumps(workspace.to_json()))
    ids: dict[str, str] = {}
    champions = []
    for snippet in CONSOLE:
        called = words(snippet.text)
        if snippet.page != "docs/how-to/promote-and-roll-back.md" or called[:3] != ["airflow", "nnunet", "model"]:
            continue
        line = [DATASET if word == "Liver" else word for word in called[3:]]
        for word in line:
            if re.fullmatch("[0-9a-f]{16}", word) and word not in ids:
                ids[word] = ("first", "second")[len(ids)]
        line = [ids.get(word, word) for word in line]
        assert jobs_main(["model", *line, "--workspace-json", str(tmp_path / "workspace.json")]) == 0, snippet.text
        champions.append(workspace.champion(DATASET))
    assert {"first", "m1"} <= set(champions), "promoted, and rolled back"
    assert {"promoted", "rolled_back", "pinned", "released", "retired"} <= {entry.event for entry in entries(workspace, DATASET)}
