"""The ledger notices every kind of change, and says which line it was."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet_jobs.__main__ import main
from nnunet_jobs.contract.exit_codes import Exit
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.registry.ledger import Event, append, entries, entry_hash, ledger_path, line_of
from nnunet_jobs.registry.verification import Verdict, verify

DATASET = "Dataset005_Phantom"
PLUGINS = Path(__file__).resolve().parents[4] / "plugins"


@pytest.fixture
def path(workspace: Workspace) -> Path:
    """A ledger of six lines about three models whose cards are listed."""
    for model in ("a", "b", "c"):
        card = workspace.model_root(model) / DATASET / "model.json"
        card.parent.mkdir(parents=True)
        card.write_text(f"card of {model}")
        append(workspace, DATASET, Event.REGISTERED, by="a job", why="Its card was written.", model=model, files=[card])
        append(workspace, DATASET, Event.PROMOTED, by="Åsa", why="It is better.", model=model, facts={"gain": 0.1}, before="z")
    return ledger_path(workspace, DATASET)


def check(path: Path) -> Verdict:
    """The verdict on one ledger."""
    (verdict,) = verify(path)
    return verdict


def test_what_is_written_is_read_and_found_whole(workspace: Workspace, path: Path) -> None:
    found = entries(workspace, DATASET)
    assert [entry.number for entry in found] == [1, 2, 3, 4, 5, 6]
    assert [entry.event for entry in found[:2]] == [Event.REGISTERED, Event.PROMOTED]
    assert found[1].by == "Åsa"
    assert found[1].facts == {"gain": 0.1}
    assert found[1].before == "z"
    assert list(found[0].files) == [f".versions/a/{DATASET}/model.json"]
    assert [entry.previous for entry in found[1:]] == [entry.hash for entry in found[:-1]]
    assert found[0].previous == ""
    for named in (path, path.parent, Path(workspace.results)):
        assert check(named) == Verdict(dataset=DATASET, path=str(path), entries=6, files=3)


def changed(line: bytes) -> bytes:
    """The line with another reason, and its hash as it was."""
    return line.replace(b"It is better.", b"It is worse!!")


def changed_with_its_hash(line: bytes) -> bytes:
    """The line with another reason, and a hash that fits."""
    entry = json.loads(changed(line))
    entry["hash"] = entry_hash(entry)
    return line_of(entry).encode()


def spaced(line: bytes) -> bytes:
    """The same content, written in another way."""
    return line.replace(b'"by": ', b'"by":  ')


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (lambda lines: [*lines[:3], changed(lines[3]), *lines[4:]], "Line 4 was changed"),
        (lambda lines: [*lines[:3], changed_with_its_hash(lines[3]), *lines[4:]], "Line 4 was changed"),
        (lambda lines: [*lines[:5], changed_with_its_hash(lines[5])], "Line 6 was changed"),
        (lambda lines: [*lines[:3], spaced(lines[3]), *lines[4:]], "Line 4 was changed"),
        (lambda lines: [*lines[:3], b"{}", *lines[4:]], "Line 4 was changed"),
        (lambda lines: [*lines[:3], b"\xff", *lines[4:]], "Line 4 was changed"),
        (lambda lines: [*lines[:2], *lines[3:]], "Line 3 is entry 4: entry 3 is missing"),
        (lambda lines: lines[1:], "Line 1 is entry 2: entry 1 is missing"),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "Line 2 is entry 3: entry 2 stands further below"),
        (lambda lines: [*lines[:3], lines[1], *lines[3:]], "Line 4 was inserted or moved there: it is entry 2"),
        (lambda lines: lines[:5], "Line 6 is missing: the ledger had 6 lines, and was cut off after line 5"),
        (lambda lines: lines[:2], "Line 3 is missing"),
        (lambda lines: [], "Line 1 is missing"),
    ],
)
def test_the_first_line_that_was_changed_is_named(path: Path, tamper: Callable[[list[bytes]], list[bytes]], words: str) -> None:
    path.write_bytes(b"".join(line + b"\n" for line in tamper(path.read_bytes().splitlines())))
    (fault,) = check(path).faults
    assert fault.startswith(words)


def test_a_removed_ledger_or_head_is_noticed(path: Path) -> None:
    head = path.with_name(f"{DATASET}.head.json")
    kept = head.read_bytes()
    head.unlink()
    assert "nobody can say whether lines were cut off after line 6" in check(path).faults[0]
    head.write_bytes(kept)
    path.unlink()
    assert check(path.parent).faults == ("Line 1 is missing: the ledger had 6 lines, and was cut off after line 0.",)


@pytest.mark.parametrize("kept", [5, 2, 0])
def test_an_entry_after_a_cut_does_not_hide_it(workspace: Workspace, path: Path, kept: int) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:kept]))
    append(workspace, DATASET, Event.PROMOTED, by="me", why="A rollback does not wait for a repair.", model="a")
    assert check(path).faults == (f"Line {kept + 1} is entry 7: entry {kept + 1} is missing.",)


def test_a_listed_file_that_differs_or_is_missing_is_named_but_not_that_of_a_retired_model(workspace: Workspace, path: Path) -> None:
    card = workspace.model_root("b") / DATASET / "model.json"
    card.write_text("another card")
    assert check(path).faults == (f".versions/b/{DATASET}/model.json was changed: line 3 lists another hash of it.",)
    append(workspace, DATASET, Event.REGISTERED, by="a job", why="Its card was written again.", model="b", files=[card])
    assert check(path).faults == ()
    card.unlink()
    assert check(path).faults == (f".versions/b/{DATASET}/model.json is missing: line 7 lists it.",)
    append(workspace, DATASET, Event.RETIRED, by="me", why="It is too old.", model="b")
    assert check(path).faults == ()
    assert check(path).notes == ("Files of model b are gone; it was retired.",)


def test_an_unfinished_last_line_is_no_entry_and_is_removed_by_the_next(workspace: Workspace, path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b'{"schema": 1, "number": 7')
    assert len(entries(workspace, DATASET)) == 6
    verdict = check(path)
    assert verdict.faults == ()
    assert verdict.notes[0].startswith("Line 7 was never finished")
    append(workspace, DATASET, Event.RELEASED, by="me", why="Go on.")
    assert check(path) == Verdict(dataset=DATASET, path=str(path), entries=7, files=3)


def test_a_head_that_lags_is_no_fault(workspace: Workspace, path: Path) -> None:
    head = path.with_name(f"{DATASET}.head.json")
    before = head.read_bytes()
    append(workspace, DATASET, Event.RELEASED, by="me", why="Go on.")
    head.write_bytes(before)
    assert check(path).faults == ()
    append(workspace, DATASET, Event.RELEASED, by="me", why="Go on.")
    assert check(path).faults == ()
    assert len(entries(workspace, DATASET)) == 8


@pytest.mark.parametrize("given", [{"why": "two\nlines"}, {"why": " "}, {"by": ""}, {"why": "long" * 500}])
def test_a_reason_is_one_line(workspace: Workspace, given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="must be one line"):
        append(workspace, DATASET, Event.RELEASED, **{"by": "me", "why": "Because.", **given})
    assert not ledger_path(workspace, DATASET).exists()


def test_a_file_elsewhere_is_not_listed(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    with pytest.raises(ConfigError, match="must lie below"):
        append(workspace, DATASET, Event.RELEASED, by="me", why="Because.", files=[tmp_path / "elsewhere"])


def test_the_command_says_it_and_ends_with_a_code(workspace: Workspace, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-ledger", str(path)]) == Exit.DONE
    assert capsys.readouterr().out == f"{DATASET}: 6 entries, 3 listed files compared: whole\n"
    path.write_bytes(path.read_bytes().replace(b"better", b"bigger"))
    assert main(["verify-ledger", str(path.parent)]) == Exit.FAILED
    assert "  Line 2 was changed" in capsys.readouterr().out
    assert main(["verify-ledger", "--json", workspace.results]) == Exit.FAILED
    assert json.loads(capsys.readouterr().out)[0]["dataset"] == DATASET
    assert main(["verify-ledger", workspace.raw]) == Exit.REFUSED
    assert "holds no ledger" in capsys.readouterr().err


def test_a_year_is_verified_by_the_standard_library_alone_and_soon(workspace: Workspace, path: Path) -> None:
    """Five entries a night, with a judgement of 4 KB each."""
    facts = {f"number {n}": n / 7 for n in range(150)}
    made = [json.loads(line) for line in path.read_bytes().splitlines()]
    while len(made) < 5 * 365:
        entry = {**made[-1], "number": len(made) + 1, "facts": facts, "files": {}, "previous": made[-1]["hash"]}
        made.append({**entry, "hash": entry_hash(entry)})
    path.write_text("".join(line_of(entry) + "\n" for entry in made))
    path.with_name(f"{DATASET}.head.json").write_text(json.dumps({"number": len(made), "hash": made[-1]["hash"]}))
    program = f"import sys; sys.path.insert(0, {str(PLUGINS)!r}); from nnunet_jobs.__main__ import main; sys.exit(main(sys.argv[1:]))"
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, "verify-ledger", str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "1825 entries" in done.stdout
    assert time.monotonic() - started < 10
