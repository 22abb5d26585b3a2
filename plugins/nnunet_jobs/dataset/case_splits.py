"""Determines patient and split of every case that a registration leaves in the dataset, as the manifest will record them."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_jobs.contract.failure import ConfigError, DataError, Fault
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.dataset import holdout
from nnunet_jobs.dataset.changes import Changes
from nnunet_jobs.dataset.manifest import files_of
from nnunet_jobs.dataset.own_splits import for_training
from nnunet_jobs.dataset.renaming import safe_group
from nnunet_jobs.dataset.sources import Source
from nnunet_jobs.dataset.validate import CheckedCase
from nnunet_jobs.faults.codes import Code, data_error


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseSplits:
    """The splits of one registration's cases.

    Attributes:
        params: Parameters of the step.
        source: The source as it was listed; withdrawn cases may leave it meanwhile.
        registered: The manifest's cases.
        withdrawn: Ids of withdrawn cases.
    """

    params: RegisterParams
    source: Source
    registered: Mapping[str, Any]
    withdrawn: Collection[str]

    def asked(self) -> list[str]:
        """Return ``holdout_cases`` by the ids that the cases have here, sorted."""
        return sorted(self.source.renamed.get(case, case) for case in self.params.holdout_cases)

    def entries(self, changes: Changes) -> dict[str, dict[str, Any]]:
        """Return the manifest entries of all cases that will be there; hashes of files still to be brought are empty.

        Raises:
            ConfigError: ``holdout_cases`` names no labelled case, or ``group_pattern`` joins training and hold-out.
            DataError: There would be no training case; see also :meth:`groups`.
        """
        staying = sorted({*self.source.cases, *changes.kept})
        groups = self.groups(staying)
        splits = self._splits(staying, groups)
        cases: dict[str, dict[str, Any]] = {}
        for case in staying:
            place = {"group": groups[case], "split": splits.get(case, holdout.TEST)}
            checked = changes.checked.get(case)
            if checked is None:
                cases[case] = {**self.registered[case], **place}
                continue
            cases[case] = {
                "images": [],
                "label": None,
                **place,
                "shape": list(checked.shape),
                "spacing": list(checked.spacing),
                "values": list(checked.values),
                **({"order": checked.order} if checked.order else {}),
                **({"planar": True} if checked.planar else {}),
                "source": {"images": list(checked.hashes), "label": checked.label_hash},
                **({"channels": checked.channels} if checked.channels != len(checked.component) else {}),
            }
        return cases

    def groups(self, staying: list[str]) -> dict[str, str]:
        """Return the patient of each case: by ``group_pattern`` where it is given, else as the source says, else the case itself.

        Raises:
            DataError: The pattern finds no patient in some case ids.
        """
        originals = {new: original for original, new in self.source.renamed.items()}
        found = holdout.groups_of([originals.get(case, case) for case in staying], self.params.group_pattern)
        groups = {case: safe_group(found[originals[case]]) if case in originals else found[case] for case in staying}
        if self.params.group_pattern is None:
            groups |= {case: case for case in staying}
            groups |= {case: item.group for case, item in self.source.cases.items() if item.group is not None}
            groups |= {case: self.registered[case]["group"] for case in staying if case not in self.source.cases}
        return groups

    def group_faults(self, staying: Collection[str]) -> list[Fault]:
        """Return the faults of cases whose patient cannot be determined."""
        try:
            self.groups(sorted(set(staying)))
        except DataError as error:
            return list(error.faults)
        return []

    def _splits(self, staying: list[str], groups: Mapping[str, str]) -> dict[str, str]:
        """Return the split of each labelled case."""
        listed = self.source.cases
        labelled = {
            case: groups[case]
            for case in staying
            if (listed[case].labelled if case in listed else self.registered[case]["split"] != holdout.TEST)
        }
        known = self._known_groups(labelled)
        by_source = {case.case for case in listed.values() if case.holdout}
        known = {labelled[case.case]: holdout.TRAIN for case in listed.values() if case.training} | known
        asked = set(self.asked())
        unknown = sorted(asked - set(labelled) - set(self.withdrawn))
        if unknown:
            near = difflib.get_close_matches(unknown[0], list(labelled), n=1)
            raise ConfigError(
                field="holdout_cases", value=unknown, problem="no such labelled cases", fix=f"did you mean {near[0]!r}?" if near else None
            )
        splits = holdout.choose(
            dataset_id=self.params.dataset_id,
            groups=labelled,
            known=known,
            explicit={*asked, *by_source},
            fraction=0.0 if by_source else self.params.holdout_fraction,
        )
        if holdout.TRAIN not in splits.values():
            message = "no training case is left; give labelled cases that are not all in holdout_cases"
            if not labelled:
                message = f"none of {len(staying)} cases has a label; add labels, since training needs them"
            raise data_error([Fault(code=Code.NO_TRAINING_CASE, message=message)], what=f"source={self.params.source!r}")
        return splits

    def _known_groups(self, labelled: Mapping[str, str]) -> dict[str, str]:
        """Return the split of each patient who is registered already."""
        known: dict[str, str] = {}
        for case, group in labelled.items():
            split = self.registered.get(case, {}).get("split", holdout.TEST)
            if split == holdout.TEST:
                continue
            if known.setdefault(group, split) != split:
                raise ConfigError(
                    field="group_pattern",
                    value=self.params.group_pattern,
                    problem=f"joins training and hold-out cases into one patient ({group!r})",
                    fix="restore the former pattern, or register under a new dataset_id",
                )
        return known


def check_places(params: RegisterParams, source: Source, checked: Sequence[CheckedCase], *, errors: bool) -> list[Fault]:
    """Check patients, hold-out and splits, which registering would refuse even if the cases themselves are sound.

    Args:
        params: Parameters of the registration.
        source: The source with its cases.
        checked: The same cases after the checks.
        errors: There are faults already, so that only patients can be checked.

    Raises:
        ConfigError: ``holdout_cases`` or ``group_pattern`` do not fit.
    """
    splits = CaseSplits(params=params, source=source, registered={}, withdrawn=())
    if errors:
        return splits.group_faults(source.cases)
    try:
        entries = splits.entries(Changes(checked={item.case.case: item for item in checked}))
    except DataError as error:
        return list(error.faults)
    return for_training(source.splits, entries)[1] if source.splits else []


def expected_files(cases: Mapping[str, Mapping[str, Any]], changes: Changes, ending: str) -> set[str]:
    """Return the names, below the dataset's folder, of all files of the entries that :meth:`CaseSplits.entries` returns."""
    return {name for case, entry in cases.items() for name in files_of(case, {**entry, **_blank(changes.checked.get(case), entry)}, ending)}


def _blank(checked: CheckedCase | None, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in placeholders for hashes that are not known yet, so that the files can be named."""
    if checked is None:
        return {}
    return {"images": [""] * len(checked.component), "label": "" if checked.case.label else None}
