"""Reads two folders, images and labels, and takes case and channel from file names by a naming rule."""

from __future__ import annotations

import re
from pathlib import Path

from nnunet_jobs.contract.failure import ConfigError, Fault
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.dataset.layouts.base import Description, Layout, Source, SourceCase, channel_files, in_order, names_in, without_image
from nnunet_jobs.dataset.names import UnusableName, below, split_ending
from nnunet_jobs.faults.codes import Code


def _recognise(params: RegisterParams, root: Path, description: Description) -> bool:
    return (root / params.images).is_dir() and (root / params.labels).is_dir()


def _read(params: RegisterParams, source: Source, description: Description) -> None:
    for name in ("images", "labels"):
        try:
            folder = below(source.root, getattr(params, name))
        except UnusableName as refused:
            raise ConfigError(where="register:", field=name, value=getattr(params, name), problem=refused.fault.message) from refused
        if not folder.is_dir():
            raise ConfigError(where="register:", field=name, value=getattr(params, name), problem=f"no such folder in {params.source}")
    if (source.root / params.images).samefile(source.root / params.labels):
        raise ConfigError(f"register: images and labels are both {params.images!r}; put them into two folders")
    pattern = re.compile(params.case_pattern, re.DOTALL)
    fix = f"the file name does not match case_pattern {params.case_pattern!r}"
    found = channel_files(source, params.images, pattern.fullmatch, fix=fix)
    labels: dict[str, str] = {}
    strays: set[str] = set()
    for name in names_in(source, params.labels):
        stem, ending = split_ending(name)
        match = pattern.fullmatch(name)
        case = stem if stem in found else match["case"] if match else stem
        if not ending or case not in found:
            strays.add(name)
        elif case in labels:
            message = f"two label files for one case: {labels[case]!r} and {name!r}; keep one"
            source.faults.append(Fault(code=Code.CASE_DUPLICATE, case=case, file=f"{params.labels}/{name}", message=message))
        else:
            labels[case] = name
    for case, files in found.items():
        label = source.root / params.labels / labels[case] if case in labels else None
        source.add(SourceCase(case=case, images=in_order(source, case, files), label=label))
    without_image(source, params.labels, strays)


_EXPECTS = "a folder of images and one of labels, named by the fields images and labels"
LAYOUT = Layout(name="folders", expects=_EXPECTS, recognise=_recognise, read=_read)
