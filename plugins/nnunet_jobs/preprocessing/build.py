"""Builds one version of one dataset: links what old versions have, and computes what is new."""

from __future__ import annotations

import importlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.params import PreprocessParams
from nnunet_jobs.contract.storage.files import content_hash
from nnunet_jobs.contract.storage.withdrawals import Tombstones
from nnunet_jobs.dataset.own_splits import splits_by_hand
from nnunet_jobs.dataset.splits import Splits, extend_splits, make_splits
from nnunet_jobs.preprocessing import planning
from nnunet_jobs.preprocessing.arrays import Arrays, BuildPart, Inputs, named
from nnunet_jobs.preprocessing.cases import READ_CACHE_SHARE, MemoryGate, ReadCache, TrainingCase, run_all
from nnunet_jobs.preprocessing.fingerprint import CaseFingerprint, FingerprintCache, aggregate, analyse, intensities_per_case
from nnunet_jobs.preprocessing.soundness import require_trainable
from nnunet_jobs.preprocessing.version import SCHEMA, Staging, Version, record_file

# Changes of these make old plans unusable, regardless of ``replan``.
_STRUCTURE = ("channel_names", "labels", "regions_class_order", "file_ending")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Plans, what they were made from, and the reason. ``replanned``: older plans could not be used any more."""

    plans: dict[str, Any]
    basis: dict[str, Any]
    replanned: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A published version and how it was made."""

    version: Version
    plan: Plan
    computed: int
    linked: int
    already_done: bool


class Build(BuildPart):
    """Runs one build, under the dataset's lock. Imports nnU-Net."""

    def __init__(
        self, inputs: Inputs, params: PreprocessParams, context: StepContext, staging: Staging, pool: ThreadPoolExecutor, memory: int
    ) -> None:
        # torch takes seconds to import, and nothing before planning needs it, so one thread imports while others read images.
        # It is only one, because two threads that import packages with circular imports can find incomplete modules.
        imports = ThreadPoolExecutor(max_workers=1, thread_name_prefix="import")
        readers = imports.submit(importlib.import_module, "nnunetv2.imageio.reader_writer_registry")
        preprocessors = imports.submit(importlib.import_module, "nnunetv2.preprocessing.preprocessors.default_preprocessor")
        imports.shutdown(wait=False)
        first = inputs.cases[0]
        first.check()
        reader = readers.result().determine_reader_writer_from_dataset_json(dict(inputs.dataset_json), str(first.images[0]), verbose=False)
        waiting = int(memory * READ_CACHE_SHARE)
        super().__init__(
            inputs,
            context,
            staging,
            pool,
            reads=ReadCache(reader, waiting),
            gate=MemoryGate(memory - waiting),
            preprocessors=preprocessors,
        )
        self.params = params
        self.reader_name = reader.__name__
        self.remembered = FingerprintCache(Path(context.workspace.preprocessed) / ".fingerprints" / inputs.dataset)

    def run(self) -> Built:
        """Make fingerprint, plans, splits, arrays and ground truth; then publish, or find that the same version exists."""
        inputs, staging = self.inputs, self.staging
        plan, fingerprint = self._plan()
        wanted = planning.with_previous_stages(plan.plans, self.params.configurations)
        require_trainable(plan.plans, wanted, custom=self.params.custom_configurations)
        splits = self._splits()
        name = content_hash(
            {
                "dataset": inputs.dataset,
                "training_hash": inputs.manifest["training_hash"],
                "plans": plan.plans,
                "splits": splits,
                "configurations": sorted(wanted),
                "nnunetv2": planning.nnunet_version(),
            }
        )
        for version in inputs.published:
            if version.name == name and not version.withdrawn and not version.damage():
                linked = sum(len(cases) for cases in version.record["cases"].values())
                return Built(version=version, plan=plan, computed=0, linked=linked, already_done=True)
        arrays = Arrays(inputs, self.context, staging, self.pool, reads=self.reads, gate=self.gate, preprocessors=self.preprocessors)
        keys, computed, linked = arrays.link_or_compute(plan.plans, wanted)
        arrays.ground_truth()
        plans_name = str(plan.plans["plans_name"])
        self._write("dataset.json", (inputs.raw / "dataset.json").read_bytes())
        self._write("dataset_fingerprint.json", _stock_json(fingerprint, sort_keys=True))
        self._write(f"{plans_name}.json", _stock_json(plan.plans, sort_keys=False))
        self._write("splits_final.json", _stock_json(splits, sort_keys=True))
        self.context.check_stop()
        version = staging.publish(
            {
                "schema": SCHEMA,
                "version": name,
                "dataset": inputs.dataset,
                "dataset_hash": inputs.manifest["hash"],
                "training_hash": inputs.manifest["training_hash"],
                "plans": plans_name,
                "plans_hash": content_hash(plan.plans),
                "configurations": wanted,
                "folds": len(splits),
                "nnunetv2": planning.nnunet_version(),
                "generation": 1 + max((int(version.record["generation"]) for version in inputs.published), default=0),
                "request": dict(inputs.request),
                "basis": plan.basis,
                "reason": plan.reason,
                "labels": {case.name: case.hashes[-1] for case in inputs.cases},
                "cases": keys,
            }
        )
        self.remembered.keep_only({case.name: self._fingerprint_key(case) for case in inputs.cases})
        return Built(version=version, plan=plan, computed=computed, linked=linked, already_done=False)

    # --- fingerprint and plans --------------------------------------------------------------------------------------
    def _fingerprint_key(self, case: TrainingCase) -> str:
        return case.key("fingerprint", self.reader_name, planning.nnunet_version())

    def _fingerprint(self, *, exact: bool) -> dict[str, Any]:
        """Return the dataset's fingerprint. Unless ``exact``, a cached draw of another size is enough, to check plans."""
        cases = self.inputs.cases
        draw = intensities_per_case(len(cases))

        def look(case: TrainingCase) -> CaseFingerprint:
            key = self._fingerprint_key(case)
            known = self.remembered.load(key)
            if known is not None and (known.usable(draw) or not exact):
                return known
            with self.gate.room(case.working_bytes(None)):
                images, label, properties = self.reads.read(case, keep=True)
                fresh = analyse(images, label, properties["spacing"], draw=draw)
            self.remembered.store(key, fresh)
            return fresh

        found: dict[str, CaseFingerprint] = {}
        work = [named(case.name, partial(look, case)) for case in cases]
        for name, fingerprint in run_all(self.pool, work, between=self.between):
            found[name] = fingerprint
            self.report("fingerprint", len(found), len(cases))
        return aggregate([found[case.name] for case in cases], pool=self.pool, beat=self.between)

    def _plan(self) -> tuple[Plan, dict[str, Any]]:
        """Keep the plans of this planner and name while they fit, else plan again. Also returns the fingerprint used."""
        params, request = self.params, self.inputs.request
        same = [old for old in self.inputs.published if all(old.record["request"][key] == request[key] for key in ("planner", "plans"))]
        # two DAGs may plan one dataset for different GPUs: each continues from its own last version
        same.sort(key=lambda old: old.record["request"]["gpu_memory_gb"] != request["gpu_memory_gb"])
        previous = same[0] if same else None
        if previous is None:
            reason = f"first plans by {params.planner}"
        else:
            fingerprint = self._fingerprint(exact=False)
            now = planning.basis(fingerprint, self.inputs.dataset_json)
            plan = self._keep(previous, now)
            if isinstance(plan, Plan):
                return plan, fingerprint
            reason = plan
        fingerprint = self._fingerprint(exact=True)
        self.preprocessors.result()
        self.context.progress("plan", planner=params.planner)
        plans = planning.make_plans(
            folder=self.staging.path / "planning",
            dataset=self.inputs.dataset,
            dataset_json=self.inputs.dataset_json,
            cases={case.name: (case.images, case.label) for case in self.inputs.cases},
            fingerprint=fingerprint,
            planner=params.planner,
            gpu_memory_gb=params.gpu_memory_gb,
            plans=params.plans,
        )
        made = Plan(
            plans=planning.with_custom(plans, params.custom_configurations),
            basis=planning.basis(fingerprint, self.inputs.dataset_json),
            replanned=previous is not None,
            reason=reason,
        )
        return made, fingerprint

    def _keep(self, previous: Version, now: dict[str, Any]) -> Plan | str:
        """Return the old plans with the present custom configurations, or the reason why they cannot be kept."""
        params, record = self.params, previous.record
        old_request = record["request"]
        plans = previous.plans()
        for name in old_request["custom_configurations"]:
            plans["configurations"].pop(name, None)
        schemes = {scheme for entry in plans["configurations"].values() for scheme in entry.get("normalization_schemes", ())}
        reason = planning.replan_reason(record["basis"], now, uses_intensities=not schemes <= planning.CASE_NORMALIZATIONS)
        if reason is None and old_request["gpu_memory_gb"] != params.gpu_memory_gb:
            reason = f"gpu_memory_gb changed from {old_request['gpu_memory_gb']} to {params.gpu_memory_gb}"
        if params.replan == "never" and reason is not None:
            broken = [field for field in _STRUCTURE if record["basis"][field] != now[field]]
            if broken:
                raise ConfigError(
                    field="replan", value="never", problem=f"{broken[0]} changed, so the old plans cannot be used", fix="set replan to auto"
                )
        elif params.replan == "always":
            return "requested by replan='always'"
        elif reason is not None:
            return reason
        kept = "plans kept" if reason is None else f"plans kept by replan='never', although {reason}"
        if old_request["custom_configurations"] != params.custom_configurations:
            kept += "; custom configurations changed"
        completed = planning.with_custom(plans, params.custom_configurations)
        return Plan(plans=completed, basis=dict(record["basis"]), replanned=False, reason=kept)

    # --- splits -----------------------------------------------------------------------------------------------------
    def _splits(self) -> Splits:
        """Extend the splits of the current version; the first version uses the user's own of the raw folder, or new ones."""
        inputs, params = self.inputs, self.params
        groups = {case.name: case.group for case in inputs.cases}
        latest = inputs.published[0] if inputs.published else None
        old = None
        if latest is not None and all(latest.record["request"][key] == inputs.request[key] for key in ("splits", "seed")):
            old = latest.json("splits_final.json")
        if inputs.request["splits"] is None:
            splits, how = make_splits(groups, folds=params.folds, seed=params.seed, old=old)
        else:
            withdrawn = Tombstones(self.context.workspace, inputs.dataset).cases
            own = old or splits_by_hand(inputs.raw, inputs.manifest["cases"], withdrawn=withdrawn)
            if len(own) != params.folds:
                raise ConfigError(
                    field="folds",
                    value=params.folds,
                    problem=f"{inputs.raw / 'splits_final.json'} has {len(own)}",
                    fix="set folds to that or remove it",
                )
            splits, how = extend_splits(own, groups), "from the dataset's own splits_final.json"
        self.context.progress("splits", len(splits), len(splits), how=how)
        return splits

    def _write(self, name: str, data: bytes) -> None:
        (self.staging.root / name).write_bytes(data)
        self.staging.files[name] = record_file(self.staging.root / name)


def _stock_json(data: Any, *, sort_keys: bool) -> bytes:
    """Format JSON as nnU-Net does, byte for byte."""
    return json.dumps(data, indent=4, sort_keys=sort_keys).encode()
