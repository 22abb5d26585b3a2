"""Makes fingerprint, plans, arrays and splits of registered datasets, and publishes them as an immutable version."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.classify import classify
from nnunet_jobs.contract.failure import FailureClass
from nnunet_jobs.contract.steps.params import PreprocessParams
from nnunet_jobs.contract.steps.results import PreprocessedDataset, PreprocessResult
from nnunet_jobs.contract.storage.files import content_hash, read_json, sha256_file
from nnunet_jobs.contract.storage.permissions import with_workspace_umask
from nnunet_jobs.contract.storage.withdrawals import Tombstones
from nnunet_jobs.dataset.withdraw import warn_of_incomplete
from nnunet_jobs.preprocessing import planning
from nnunet_jobs.preprocessing.arrays import Inputs
from nnunet_jobs.preprocessing.build import Build, Built
from nnunet_jobs.preprocessing.cases import available_memory, raise_if_full, training_cases
from nnunet_jobs.preprocessing.version import Staging, Version, check_link, make_current, published

log = logging.getLogger(__name__)


@with_workspace_umask
def run(params: PreprocessParams, context: StepContext) -> dict[str, Any]:
    """Bring every dataset to a published version that has what ``params`` ask for, computing only what is new.

    Returns:
        :class:`~nnunet_jobs.contract.steps.results.PreprocessResult` as a JSON object.

    Raises:
        ConfigError: A dataset, planner or configuration is unknown, folds are impossible, or a foreign folder is in the
            link's place.
        DataError: A case changed since it was registered.
        DiskFull: There is no space; incomplete files do not become visible.
        Interrupted: The job is to stop; the next attempt uses the finished cases.
    """
    os.environ.update(context.workspace.nnunet_environment())
    results = []
    for dataset in dict.fromkeys(context.workspace.resolve_dataset(item) for item in params.datasets):
        check_link(context.workspace, dataset)
        lock = Path(context.workspace.preprocessed) / ".locks" / f"{dataset}.lock"
        with context.content_lock(lock, what=f"preprocessing of {dataset}"):
            warn_of_incomplete(Tombstones(context.workspace, dataset))
            results.append(_preprocess(dataset, params, context))
    first = results[0]
    return PreprocessResult(
        dataset=first.dataset,
        version=first.version,
        plans=first.plans,
        configurations=first.configurations,
        folds=first.folds,
        datasets=results,
    ).to_json()


def _preprocess(dataset: str, params: PreprocessParams, context: StepContext) -> PreprocessedDataset:
    workspace = context.workspace
    raw, manifest = workspace.raw_dataset(dataset), workspace.manifest(dataset)
    dataset_json = read_json(raw / "dataset.json")
    cases = training_cases(raw, manifest)
    own_splits = raw / "splits_final.json"
    inputs = Inputs(
        dataset=dataset,
        raw=raw,
        manifest=manifest,
        dataset_json=dataset_json,
        cases=cases,
        published=published(workspace, dataset),
        request={
            "planner": params.planner,
            "gpu_memory_gb": params.gpu_memory_gb,
            "plans": params.plans,
            "custom_configurations": params.custom_configurations,
            "folds": params.folds,
            "seed": params.seed,
            "splits": sha256_file(own_splits) if own_splits.is_file() else None,
            "reader": dataset_json.get("overwrite_image_reader_writer"),
            "groups": content_hash({case.name: case.group for case in cases}),
            "nnunetv2": planning.nnunet_version(),
        },
    )
    version = None if params.replan == "always" else _find_done(inputs, params, context)
    if version is not None:
        linked = sum(len(done) for done in version.record["cases"].values())
        outcome: dict[str, Any] = {"computed": 0, "linked": linked, "replanned": False, "reason": "nothing changed", "already_done": True}
    else:
        built = _build(inputs, params, context)
        version = built.version
        outcome = {
            "computed": built.computed,
            "linked": built.linked,
            "replanned": built.plan.replanned,
            "reason": built.plan.reason,
            "already_done": built.already_done,
        }
    make_current(workspace, dataset, version)
    record = version.record
    return PreprocessedDataset(
        dataset=dataset,
        version=version.name,
        path=str(version.root),
        plans=record["plans"],
        configurations=list(record["configurations"]),
        folds=record["folds"],
        cases=len(cases),
        **outcome,
    )


def _find_done(inputs: Inputs, params: PreprocessParams, context: StepContext) -> Version | None:
    """Find a complete version of the same cases and settings. This does not import nnU-Net."""
    for version in inputs.published:
        record = version.record
        if record["training_hash"] != inputs.manifest["training_hash"] or record["request"] != inputs.request:
            continue
        if version.withdrawn or not set(params.configurations) <= set(record["configurations"]):
            continue
        context.progress("verify", 0, len(version.files))
        damage = version.damage()
        if not damage:
            return version
        log.warning("version %s: %d files are damaged or foreign, such as %s; it is made again", version.name, len(damage), damage[0])
    return None


def _build(inputs: Inputs, params: PreprocessParams, context: StepContext) -> Built:
    staging = Staging(context.workspace, inputs.dataset)
    pool = ThreadPoolExecutor(max_workers=params.processes or max(1, context.cpus), thread_name_prefix="case")
    try:
        built = Build(inputs, params, context, staging, pool, available_memory(context.memory_mib)).run()
        if built.already_done:
            staging.discard()
    except BaseException as error:
        pool.shutdown(cancel_futures=True)  # no thread may still write when the folder is checked or removed
        try:
            raise_if_full(staging.path, error)
            raise
        except BaseException as final:
            if classify(final) is FailureClass.DISK_FULL:
                staging.discard()  # after any other failure, the next attempt uses the finished cases
            raise
    finally:
        pool.shutdown()
    return built
