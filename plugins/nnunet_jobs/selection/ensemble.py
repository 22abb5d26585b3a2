"""Averages the validation probabilities of two configurations case by case, with the arithmetic of nnUNetv2_ensemble."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.selection.compare import Candidate, Reference, folds_text, start_folder
from nnunet_jobs.selection.trained import Trained


def pairs(trained: Trained) -> Iterator[tuple[str, str]]:
    """Yield every pair of compared configurations, in order."""
    return itertools.combinations(trained.configurations, 2)


def ensemble(trained: Trained, pair: tuple[str, str], reference: Reference, context: StepContext) -> Candidate:
    """Average two configurations' probabilities of all validation cases in ``ensembles/`` and compare the result.

    Raises:
        ConfigError: The two were validated on different cases.
    """
    from nnunetv2.ensembling.ensemble import merge_files

    folders = [trained.folder(configuration) for configuration in pair]
    name = f"ensemble___{folders[0].name}___{folders[1].name}___{folds_text(trained.folds)}"
    folder = trained.root / "ensembles" / name
    sources = [trained.validation_cases(configuration) for configuration in pair]
    if list(sources[0]) != list(sources[1]):
        raise ConfigError(
            field="configurations",
            value=list(pair),
            problem="validated on different cases, so they cannot be ensembled",
            fix="set ensembles=False",
        )
    start_folder(folder, folders[0])

    def merge(case: str) -> None:
        context.check_stop()
        files = [str(source[case] / f"{case}.npz") for source in sources]
        merge_files(files, str(folder / case), reference.ending, reference.reader_writer(), reference.label_manager)
        context.beat()

    # one case at a time holds two images' probabilities for all labels in memory; a second thread hides the decompression
    with ThreadPoolExecutor(max_workers=min(2, max(1, context.cpus))) as pool:
        list(pool.map(merge, sources[0]))
    return Candidate(
        name=name,
        configurations=pair,
        folder=folder,
        cases=tuple(sources[0]),
        summary=reference.summarise(list(sources[0]), folder),
    )
