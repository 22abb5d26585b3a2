"""Keeps predictions of several models in one output folder: each model's in its own folder, and links to those of the newest run.

See :mod:`nnunet_jobs.contract.storage.predictions` for the layout.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.storage.files import content_hash, locked, read_object, repoint, temporary_beside, write_record
from nnunet_jobs.contract.storage.predictions import (
    MODELS,
    NEWEST,
    PREDICTIONS,
    RECORDS,
    SHEET,
    TABLE,
    entry,
    model_folder,
    newest_folder,
    read_predictions,
    summarise,
    write_predictions,
)
from nnunet_jobs.prediction.parts import KEPT_S
from nnunet_jobs.prediction.records import PICTURES

log = logging.getLogger("nnunet_jobs")

_LOCK, _RUNS, _OTHERS = ".lock", ".runs", "others"
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class ModelOutput:
    """Manages the predictions of one model in an output folder.

    Args:
        output: Output folder that the user named.
        model: Id of the selected model.
        model_hash: Hash of the selected model.
    """

    def __init__(self, output: Path, model: str, model_hash: str) -> None:
        self.output = output
        self.folder = model_folder(output, model, model_hash)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._name = self.folder.name
        with self._locked():
            _adopt(output)
            if not (output / NEWEST).exists():
                self._repoint()

    def show_case(self, files: Collection[str]) -> None:
        """Link a case's files beside ``newest``, if this model is the newest."""
        with self._locked():
            if newest_folder(self.output) == self.folder.resolve():
                self._link(files)

    def show_all(self) -> None:
        """Make this model the newest, so that the links show exactly its predictions."""
        with self._locked():
            self._repoint()
            self._link(sorted(path.name for path in self.folder.iterdir() if path.name != RECORDS))
            forget_dead_links(self.output)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with locked(self.output / MODELS / _LOCK, interval=0.02):
            yield

    def _repoint(self) -> None:
        with _links_are_extra(self.folder):
            repoint(self.output / NEWEST, self.folder)

    def _link(self, names: Collection[str]) -> None:
        with _links_are_extra(self.folder):
            for name in names:
                place, target = self.output / name, f"{NEWEST}/{name}"
                if place.is_symlink() and os.readlink(place) == target:
                    continue
                if place.exists() and not place.is_symlink():
                    _set_aside(place)  # of a program that keeps no records, such as nnU-Net's own command
                temporary = temporary_beside(place)
                os.symlink(target, temporary)
                os.replace(temporary, place)


def model_of_run(output: Path, model: str | None, promoted: str | None, *, run: Mapping[str, str], of: Any, parts: int) -> str | None:
    """Return the model with which all parts of a run predict, even if another model is promoted between two parts.

    Args:
        model: Id of the requested model; None for the promoted one.
        promoted: Id of the model that is promoted now.
        run: Labels of the DAG run; empty outside of a run.
        of: The requested cases, as JSON.
    """
    if model is not None or promoted is None or parts == 1 or not run:
        return model or promoted
    folder = output / MODELS / _RUNS
    path = folder / f"{content_hash([dict(run), of, parts])}.json"
    with locked(folder / _LOCK, interval=0.02):
        known = read_object(path).get("model")
        if not isinstance(known, str):
            known = promoted
            write_record(path, {"model": known})
        for other in folder.glob("*.json"):
            if other != path and time.time() - other.stat().st_mtime > KEPT_S:
                other.unlink(missing_ok=True)
    return known


def forget_dead_links(output: Path) -> None:
    """Remove the links beside ``newest`` to files that the newest model does not have."""
    for path in output.iterdir():
        if path.is_symlink() and os.readlink(path).startswith(f"{NEWEST}/") and not path.exists():
            path.unlink(missing_ok=True)


def unrecorded(output: Path, case: str) -> list[Path]:
    """Return a case's files without a record, which were set aside because they were in the place of a link."""
    others = output / MODELS / _OTHERS
    return [path for path in others.iterdir() if path.name.startswith(f"{case}.")] if others.is_dir() else []


def _adopt(output: Path) -> None:
    """Move predictions that are directly in the output folder, such as a predictor server's, to the folders of their models."""
    records = output / RECORDS
    if not records.is_dir() or records.is_symlink():
        return
    before = read_predictions(output)
    moved: dict[Path, dict[str, dict[str, Any]]] = {}
    for path in sorted(records.glob("*.json")):
        record = read_object(path)
        model, digest = record.get("model") or before.get("model"), record.get("model_hash") or before.get("model_hash")
        if not isinstance(model, str) or not isinstance(digest, str):
            continue
        folder = model_folder(output, model, digest)
        (folder / RECORDS / PICTURES).mkdir(parents=True, exist_ok=True)
        for name in record.get("files") or {}:
            if (output / name).is_file() and not (output / name).is_symlink():
                os.replace(output / name, folder / name)
        with contextlib.suppress(FileNotFoundError):
            os.replace(records / PICTURES / path.name, folder / RECORDS / PICTURES / path.name)
        os.replace(path, folder / RECORDS / path.name)
        moved.setdefault(folder, {})[path.stem] = {"model": model, "model_hash": digest, **entry(record)}
    for folder, cases in moved.items():
        _describe(folder, before, cases)
    for path in (output / PREDICTIONS, output / TABLE, output / SHEET):
        if path.is_file() and not path.is_symlink():
            path.unlink()  # its content is in the models' folders now
    shutil.rmtree(records)  # locks and plans; the rest must not outlive a withdrawal


def _describe(folder: Path, before: Mapping[str, Any], cases: Mapping[str, dict[str, Any]]) -> None:
    """Write ``predictions.json`` of moved predictions; the model's next run writes it completely, with its table and sheet."""
    first = next(iter(cases.values()))
    of_model = before if before.get("model_hash") == first["model_hash"] else {"dataset": before.get("dataset"), "settings": {}}
    if not (folder / PREDICTIONS).exists():
        facts = {**of_model, "model": first["model"], "model_hash": first["model_hash"]}
        write_predictions(folder, summarise(facts, cases, counted=cases.values()))


def _set_aside(path: Path) -> None:
    others = path.parent / MODELS / _OTHERS
    others.mkdir(exist_ok=True)
    place = _free(others / path.name)
    os.rename(path, place)
    log.warning("%s was made by another program; it is kept as %s", path.name, place.relative_to(path.parent))


def _free(path: Path) -> Path:
    """Return the path, or a similar one that does not exist."""
    number = 1
    place = path
    while place.exists():
        number += 1
        place = path.with_name(f"{path.name}.{number}")
    return place


@contextlib.contextmanager
def _links_are_extra(folder: Path) -> Iterator[None]:
    """Ignore missing support for links, as on some network shares; the predictions are complete without them."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        log.warning("the output folder's file system has no symbolic links; the predictions are in %s only", folder)
