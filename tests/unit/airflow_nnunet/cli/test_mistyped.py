"""What a person can mistype: each command ends with a sentence and a code of the one table, never with a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import nnunet_jobs.__main__
from airflow_nnunet.__main__ import main
from airflow_nnunet.cli.definition import get_cli_commands
from nnunet_jobs.contract.exit_codes import Exit

CASES = [
    ("dataset list --conn-id no_such", "--conn-id='no_such'"),
    ("dataset log no_such", "no_such"),
    ("dataset log ../x", "'../x'"),
    ("dataset log 4 --team no_such", "no_such"),
    ("dataset withdraw no_such --case a", "no_such"),
    ("model list no_such", "no_such"),
    ("model show no_such", "no_such"),
    ("model compare no_such a b", "no_such"),
    ("model replay no_such --policy /no/such/policy.yaml", "no_such"),
    ("model promote no_such m", "no_such"),
    ("model rollback no_such", "no_such"),
    ("model retire no_such m", "no_such"),
    ("model pin no_such", "no_such"),
    ("model release 4 --team no_such", "no_such"),
    ("doctor --conn-id no_such", "--conn-id='no_such'"),
    ("sync-pools --conn-id no_such", "--conn-id='no_such'"),
    ("sync-pools /no/such/pools.json", "no such file"),
    ("sync-pools /proc", "/proc: Is a directory"),
    ("mark-workspace --conn-id no_such", "--conn-id='no_such'"),
    ("usage --since yesterday", "--since='yesterday'"),
    ("usage --since 2026-02-01 --until 2026-01-01", "--until"),
    ("usage --conn-id no_such", "--conn-id='no_such'"),
    ("predict /no/such/image.nii.gz --dataset 4", "/no/such/image.nii.gz: no such file"),
    ("predict {file} --dataset 4 --url http://x:port", "--url='http://x:port'"),
    ("predict {file} --dataset 4 --output /no/such/folder/result", "--output /no/such/folder/result"),
    ("init /dev/null", "folder='/dev/null': is a file"),
]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "")  # the commands set it; put back what was there
    monkeypatch.setenv("NNUNET_API_TOKEN", "token")
    (tmp_path / "image.nii.gz").write_bytes(b"image")
    return tmp_path / "image.nii.gz"


@pytest.mark.parametrize(("line", "says"), CASES)
def test_a_command_of_airflow_refuses_in_a_sentence(
    nnunet: Path, file: Path, capsys: pytest.CaptureFixture[str], line: str, says: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([word.format(file=file) for word in line.split()])
    assert ended.value.code == Exit.REFUSED
    assert says in capsys.readouterr().err


def test_each_command_is_tried_here() -> None:
    def names(commands: tuple[object, ...], before: str = "") -> set[str]:
        found: set[str] = set()
        for command in commands:
            inside = getattr(command, "subcommands", None)
            name = f"{before}{command.name}"  # type: ignore[attr-defined]
            found |= names(inside, f"{name} ") if inside else {name}
        return found

    tried = {line for line, _ in CASES}
    assert {name for name in names(get_cli_commands()[0].subcommands) if not any(line.startswith(name) for line in tried)} == set()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("withdraw 4 --workspace-json /no/such.json --case a", "/no/such.json: No such file"),
        ("withdraw 4 --workspace-json {file} --case a", "must hold a workspace as JSON"),
        ("model list 4 --workspace-json {file}", "must hold a workspace as JSON"),
        ("model promote 4 --workspace-json {file}", "promote needs a model"),
        ("model list 4 m1 --workspace-json {file}", "list takes no model"),
        ("serve --workspace-json {file}", "must hold a workspace as JSON"),
        ("serve --workspace-json /no/such.json", "/no/such.json: No such file"),
        ("phantom {file}/below --cases 2", "{file}"),
        ("phantom {file}-new --cases 0", "--cases=0"),
        ("deidentify /no/such {file}-out", "--private"),
    ],
)
def test_a_command_of_the_jobs_refuses_in_a_sentence(
    file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, line: str, says: str
) -> None:
    monkeypatch.delenv("nnUNet_raw", raising=False)
    code = nnunet_jobs.__main__.main([word.format(file=file) for word in line.split()])
    assert code == Exit.REFUSED
    assert says.format(file=file) in capfd.readouterr().err + caplog.text


@pytest.mark.parametrize("line", ["nnunet_jobs probe", "nnunet_jobs validate {folder}"])
def test_a_reader_that_has_seen_enough_is_no_fault(tmp_path: Path, line: str) -> None:
    """As with ``| head -1``: the reader leaves before the command writes."""
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", *line.format(folder=tmp_path).split()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment, timeout=60, check=False)
    os.close(writer)
    assert "Traceback" not in done.stderr
    assert "Broken pipe" not in done.stderr


def test_brackets_of_a_help_text_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--help"])
    assert "overrides section [nnunet]" in " ".join(capsys.readouterr().out.split())
