"""``python -m nnunet_jobs validate`` runs the validator for a person at a terminal, or for a script that reads JSON."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_jobs.cli.command import Command
from nnunet_jobs.contract.classify import classify
from nnunet_jobs.contract.exit_codes import Exit
from nnunet_jobs.contract.failure import ConfigError, DataError, DiskFull, Fault
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.faults.codes import Code
from nnunet_jobs.faults.fixes import FAULT_INFO

if TYPE_CHECKING:
    from nnunet_jobs.dataset.check import Report

_JSON_OBJECTS, _JSON_VALUES = ("series", "label_rules"), ("channel_names", "label_names", "regions_class_order", "holdout_cases")
_SHOWN_S = 0.5  # seconds between two states of the progress line


def _declare(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments; those of a source are the fields of registration."""
    parser.description = (
        "Exit code 0: usable (warnings may be there); 3: faults; 2: wrong usage or configuration; 1: the check itself failed. "
        "With --json there is a report for each of them."
    )
    parser.add_argument("path", type=Path, help="folder or archive of the dataset, in any layout that registration reads")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout: ok, cases, faults")
    parser.add_argument("--fix-plan", action="store_true", help="print what to do with which file")
    parser.add_argument("--html", type=Path, help="write a page with numbers, pictures of all cases, and the faults to this file")
    parser.add_argument("--layout", help="auto (default), or a layout that registration knows")
    parser.add_argument("--images", help="sub-folder of the images, for the layout folders")
    parser.add_argument("--labels", help="sub-folder of the labels, for the layout folders")
    parser.add_argument("--mapping", help="for the layout csv, the table below the source that lists the cases")
    parser.add_argument("--bids-label", help="for the layout bids, which label file is meant, such as label-lesion_mask")
    parser.add_argument("--series", help='for DICOM, JSON such as {"T1": {"description": "(?i)t1"}}')
    parser.add_argument("--label-rules", help='for DICOM SEG and RTSTRUCT, JSON such as {"tumour": ["GTV.*"]}')
    parser.add_argument("--private", type=Path, help="for DICOM, folder with the site's key; new ids if not given")
    parser.add_argument("--rename", action="store_const", const=True, help="replace ids that are not safe, as registration does")
    parser.add_argument("--group-pattern", help="regular expression on the case id whose group 1 is the patient")
    parser.add_argument("--holdout-fraction", type=float, help="share of patients never trained on (default 0.1)")
    parser.add_argument("--holdout-cases", help='JSON such as ["case_07"]')
    parser.add_argument("--case-pattern", help="regular expression on image file names with the groups case and channel")
    parser.add_argument("--channel-names", help='JSON such as {"0": "T1"}')
    parser.add_argument("--label-names", help='JSON such as {"background": 0, "tumour": 1}')
    parser.add_argument("--regions-class-order", help="JSON such as [1, 2]")
    parser.add_argument("--spacing-tolerance", type=float, help="relative tolerance of spacing and affine")
    parser.add_argument("--processes", type=int, help="processes that read at the same time (default: all allowed cores)")
    parser.add_argument("--memory-mib", type=int, help="memory of all processes together (default: what host or cgroup allows)")
    parser.add_argument("--time-limit", type=float, help="seconds for one case, plus one for each MiB (default 60)")


def _run(arguments: argparse.Namespace) -> int:
    # without --private, the private folder that the log names is removed at the end
    logging.getLogger("nnunet_jobs").setLevel(logging.WARNING if arguments.private else logging.ERROR)
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        report = _check(arguments)
    except (ConfigError, DiskFull) as error:
        return _refused(arguments, error.failure_class, str(error), Exit.USAGE)
    except Exception as error:
        if not arguments.json:
            raise
        logging.getLogger("nnunet_jobs").exception("the check failed")
        return _refused(arguments, classify(error), f"the check failed: {error}", Exit.FAILED)
    finally:
        signal.signal(signal.SIGTERM, before)
    if report.layout == "dicom" and arguments.private is None:
        print("ids of cases are made up for this run; --private gives those of registration, and a list of who is who", file=sys.stderr)
    if arguments.html is not None and not _write_page(arguments.html, arguments.path, report):
        return Exit.USAGE
    if arguments.json:
        print(json.dumps(report.to_json(), indent=1))
    elif arguments.fix_plan:
        print("\n".join(fix_plan(report.faults)))
    else:
        print("\n".join(text(report)))
    return Exit.DONE if report.ok else Exit.REFUSED


def _refused(arguments: argparse.Namespace, code: str, reason: str, status: Exit) -> Exit:
    """Say why there is no report, with ``--json`` as a report too. Returns the exit code."""
    from nnunet_jobs.dataset.check import Report

    print(reason, file=sys.stderr)
    if arguments.json:
        print(json.dumps(Report(cases=0, faults=(Fault(code=str(code), message=reason),)).to_json(), indent=1))
    return status


def _terminated(number: int, _frame: object) -> None:
    """Exit normally, so that scratch folders with images of patients are removed."""
    sys.exit(128 + number)


def _write_page(target: Path, source: Path, report: Report) -> bool:
    from nnunet_jobs.contract.storage.files import write_private
    from nnunet_jobs.report.page import render_report

    tables = report.tables or {"channel_names": {}, "labels": {}}
    page = render_report(title=source.resolve().name, tables=tables, cases=report.summaries, faults=report.faults, seconds=report.seconds)
    try:
        write_private(target, page.encode())  # pictures of patients
    except OSError as error:
        print(f"--html={target}: cannot be written: {error.strerror}", file=sys.stderr)
        return False
    return True


def text(report: Report) -> Iterator[str]:
    """Lines for people: a verdict, then all faults, errors first, grouped by code."""
    errors = [fault for fault in report.faults if fault.severity == "error"]
    warnings = [fault for fault in report.faults if fault.severity != "error"]
    verdict = "usable" if report.ok else "NOT usable"
    layout = f", layout {report.layout}" if report.layout else ""
    counts = f"{len(errors)} error{'s'[: len(errors) != 1]}, {len(warnings)} warning{'s'[: len(warnings) != 1]}"
    yield f"{verdict}: {report.cases} case{'s'[: report.cases != 1]}{layout}, {counts} ({report.seconds:.1f} s)"
    for title, faults in (("Errors", errors), ("Warnings", warnings)):
        if faults:
            yield f"\n{title}"
        for code, group in _by_code(faults):
            yield f"  {code} ({len(group)}): {FAULT_INFO[code].what}"
            for fault in group:
                yield f"    {_where(fault)}: {fault.message}"
    if report.faults:
        yield "\nRun again with --fix-plan for what to do, file by file."


def fix_plan(faults: Sequence[Fault]) -> Iterator[str]:
    """Lines of a plan to follow from top to bottom: what to do, and with which files."""
    if not faults:
        yield "Nothing to fix."
        return
    errors_first = [
        (severity, item) for severity in ("error", "warning") for item in _by_code([f for f in faults if f.severity == severity])
    ]
    for number, (severity, (code, group)) in enumerate(errors_first, 1):
        must = "must be fixed" if severity == "error" else "look at it"
        yield f"{number}. {code} ({must}): {FAULT_INFO[code].fix}"
        for fault in group:
            yield f"   [ ] {_where(fault)}: {fault.message}"


def _by_code(faults: Sequence[Fault]) -> list[tuple[Code, list[Fault]]]:
    order = list(Code)
    ranked = sorted(faults, key=lambda fault: (order.index(Code(fault.code)), fault.case or "", fault.file or ""))
    return [(Code(code), list(group)) for code, group in groupby(ranked, key=lambda fault: fault.code)]


def _where(fault: Fault) -> str:
    return " ".join(part for part in (fault.case, fault.file) if part) or "dataset"


def _check(arguments: argparse.Namespace) -> Report:
    from nnunet_jobs.context import StepContext
    from nnunet_jobs.contract.job.folder import JobDir
    from nnunet_jobs.contract.storage.workspace import Workspace
    from nnunet_jobs.dataset.check import Report, check_dataset
    from nnunet_jobs.dataset.materialise import plain_source
    from nnunet_jobs.dataset.whole import ordered
    from nnunet_jobs.devices import host
    from nnunet_jobs.sandbox.workers import TIME_LIMIT_S

    params = _params(arguments)
    root = _existing(arguments.path)
    processes = arguments.processes if arguments.processes is not None else max(1, int(host.cores()))
    time_limit = arguments.time_limit if arguments.time_limit is not None else TIME_LIMIT_S
    for name, value in (("processes", processes), ("memory-mib", arguments.memory_mib), ("time-limit", time_limit)):
        if value is not None and value <= 0:
            raise ConfigError(field=f"--{name}", value=value, problem="must be more than 0")
    with tempfile.TemporaryDirectory(prefix="nnunet_validate_") as scratch:
        # Sources that must be converted first are converted here, and forgotten.
        workspace = Workspace.below(Path(scratch) / "work", input_roots=(str(root),))
        Path(workspace.jobs, "validate").mkdir(parents=True)
        Path(workspace.raw).mkdir(parents=True)
        if arguments.private is not None:
            arguments.private.mkdir(mode=0o700, parents=True, exist_ok=True)
            workspace.private.symlink_to(arguments.private.resolve())
        context = StepContext(workspace=workspace, job=JobDir(Path(workspace.jobs) / "validate"), cpus=processes)
        try:
            with plain_source(params, root, context, dataset="Validate") as folder:
                return check_dataset(
                    folder,
                    params=params,
                    processes=processes,
                    memory_mib=arguments.memory_mib,
                    time_limit_s=time_limit,
                    progress=_Progress(),
                )
        except DataError as error:  # the source could not be converted to a folder of images
            return Report(cases=0, faults=ordered(error.faults))


def _existing(path: Path) -> Path:
    """Return the folder or archive that a path leads to.

    Raises:
        ConfigError: It does not exist, or is a circular link.
    """
    try:
        root = Path(os.path.realpath(path))
        os.stat(root)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such folder or archive") from None
    except (OSError, ValueError) as error:  # circles of links, names that are too long or hold a null byte
        raise ConfigError(f"{str(path)!r}: cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    return root


def _params(arguments: argparse.Namespace) -> RegisterParams:
    known = {item.name for item in fields(RegisterParams)}
    given = {name: value for name, value in vars(arguments).items() if name in known and value is not None}
    for name in (*_JSON_OBJECTS, *_JSON_VALUES):
        if name in given:
            given[name] = _json(f"--{name.replace('_', '-')}", given[name])
            if name in _JSON_OBJECTS and not isinstance(given[name], dict):
                raise ConfigError(field=f"--{name.replace('_', '-')}", value=vars(arguments)[name], problem="not a JSON object")
    return RegisterParams(dataset_id=1, name="Validate", source=str(arguments.path), **given)


class _Progress:
    """Shows progress: one changing line on a terminal's stderr, or a few lines if stderr is a file."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now < self._next and done < total:
            return
        terminal = sys.stderr.isatty()
        self._next = now + (_SHOWN_S if terminal else 10 * _SHOWN_S)
        start, end = ("\r" if terminal else ""), ("" if terminal and done < total else "\n")
        print(f"{start}checked {done} of {total} cases", end=end, file=sys.stderr, flush=True)


def _json(field: str, value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ConfigError(field=field, value=value, problem=f"not JSON: {error}") from error


VALIDATE = Command(name="validate", help="check a dataset: every fault of every case, nothing is written", declare=_declare, run=_run)
