"""Cases are shared among parts by voxels, and all parts of a run agree, whatever happens between their starts."""

from __future__ import annotations

import gzip
import os
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from nnunet_jobs.contract.storage.files import locked
from nnunet_jobs.prediction.cases import Case
from nnunet_jobs.prediction.parts import PartPlans, balance, case_voxels
from nnunet_jobs.prediction.reading import ReadBeside
from nnunet_jobs.prediction.records import Records

RUN = ("a_dag", "manual__2026-11-28")


def image(path: Path, shape: tuple[int, ...]) -> Path:
    import nibabel as nib

    nib.save(nib.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4)), path)
    return path


@pytest.fixture
def plans(tmp_path: Path) -> PartPlans:
    return PartPlans(tmp_path / "out" / ".parts", lambda part: tmp_path / "out" / f"part-{part}.lock")


def cases(names: Iterable[str]) -> list[Case]:
    return [Case(case=name, images=(Path(f"/nowhere/{name}.nii.gz"),)) for name in names]


def share(plans: PartPlans, names: Iterable[str], part: int, *, run: tuple[str, ...] = RUN, parts: int = 3) -> list[str]:
    sizes = {name: 100 + ord(name[-1]) for name in names}
    return [case.case for case in plans.share(cases(names), part=part, parts=parts, run=run, size=lambda case: sizes[case.case])]


def test_voxels_come_from_the_header_and_nothing_else_is_read(tmp_path: Path) -> None:
    import nibabel as nib

    whole = image(tmp_path / "a_0000.nii.gz", (40, 30, 20))
    plain = image(tmp_path / "b_0000.nii", (7, 6, 5))
    cut = tmp_path / "c_0000.nii.gz"
    noise = np.random.default_rng(0).integers(0, 255, 40_000, dtype=np.uint8).tobytes()
    cut.write_bytes(gzip.compress(gzip.decompress(whole.read_bytes())[:352] + noise)[:4000])
    garbage = tmp_path / "d_0000.nii.gz"
    garbage.write_bytes(b"not an image")
    second = tmp_path / "g_0000.nii.gz"
    nib.save(nib.Nifti2Image(np.zeros((9, 8, 7), np.uint8), np.eye(4)), second)
    pipe = tmp_path / "e_0000.nii.gz"
    os.mkfifo(pipe)
    picture = tmp_path / "f_0000.png"
    picture.write_bytes(bytes(321))
    paths = [whole, plain, cut, second, garbage, pipe, tmp_path / "none.nii.gz", picture]
    assert [case_voxels(Case(case="x", images=(path,))) for path in paths] == [24_000, 210, 24_000, 504, 0, 0, 0, 321]
    assert case_voxels(Case(case="x", images=(), problem="no")) == 0


def test_one_huge_case_does_not_share_its_part_with_half_of_the_small_ones() -> None:
    voxels = {"huge": 900, **{f"s{n:02d}": 100 for n in range(18)}}
    found = balance(voxels, parts=range(3), load={})
    load = Counter[int]()
    for case, part in found.items():
        load[part] += voxels[case]
    assert sorted(load.values()) == [900, 900, 900]


def test_cases_of_unknown_size_are_spread_too() -> None:
    found = balance(dict.fromkeys(map(str, range(12)), 0), parts=range(4), load={})
    assert sorted(Counter(found.values()).values()) == [3, 3, 3, 3]


def test_the_parts_of_a_run_cover_every_case_once(plans: PartPlans) -> None:
    names = [f"c{n:03d}" for n in range(50)]
    shares = [share(plans, names, part) for part in range(3)]
    assert sorted(case for found in shares for case in found) == names
    assert all(found == sorted(found) for found in shares)


def test_more_parts_than_cases_leave_some_empty(plans: PartPlans) -> None:
    assert sorted(len(share(plans, ["a", "b"], part, parts=5)) for part in range(5)) == [0, 0, 0, 1, 1]


def test_a_case_that_arrives_between_two_starts_goes_to_a_part_that_has_not_started(plans: PartPlans) -> None:
    names = [f"c{n:03d}" for n in range(9)]
    first = share(plans, names, 0)
    later = [*names, "d000", "d001", "d002", "d003", "d004", "d005"]
    second, third = share(plans, later, 1), share(plans, later, 2)
    assert sorted([*first, *second, *third]) == sorted(later)
    assert not any(name.startswith("d") for name in first)


def test_a_retry_gets_its_share_again_and_what_nobody_else_would_see(plans: PartPlans) -> None:
    names = [f"c{n:03d}" for n in range(9)]
    shares = [share(plans, names, part) for part in range(3)]
    assert share(plans, names, 1) == shares[1]
    assert share(plans, [*names, "new"], 1) == [*shares[1], "new"]
    assert share(plans, [*names, "new"], 0) == shares[0]
    gone = [name for name in names if name != shares[1][0]]
    assert share(plans, gone, 1) == shares[1][1:]


def test_another_run_plans_anew(plans: PartPlans) -> None:
    names = [f"c{n:03d}" for n in range(6)]
    share(plans, names, 0, run=("a_dag", "first"))
    grown = [*names, "d000", "d001", "d002"]
    found = [share(plans, grown, part, run=("a_dag", "second")) for part in range(3)]
    assert sorted(map(len, found)) == [3, 3, 3]


def test_without_a_run_parts_agree_one_after_another_and_at_once(plans: PartPlans, tmp_path: Path) -> None:
    names = [f"c{n:03d}" for n in range(9)]
    first = share(plans, names, 0, run=())
    rest = [share(plans, [*names, "new"], part, run=()) for part in (1, 2)]
    assert sorted([*first, *rest[0], *rest[1]]) == [*names, "new"]
    with locked(tmp_path / "out" / "part-2.lock"):
        assert share(plans, [*names, "new"], 0, run=()) == first  # its retry, while another part is still at work
    grown = [f"e{n:03d}" for n in range(30)]
    again = [share(plans, grown, part, run=()) for part in range(3)]  # all have had their shares: a new round
    assert sorted(map(len, again)) == [10, 10, 10]


def test_two_tasks_of_a_run_that_predict_other_cases_do_not_meet(plans: PartPlans) -> None:
    names = [f"c{n:03d}" for n in range(9)]
    for folder in ("/scans/a", "/scans/b"):
        shares = [plans.share(cases(names), part=part, parts=3, run=RUN, of=folder, size=lambda _case: 1) for part in range(3)]
        assert [len(found) for found in shares] == [3, 3, 3]


def test_plans_of_old_runs_are_forgotten(plans: PartPlans, tmp_path: Path) -> None:
    share(plans, ["a", "b"], 0, run=("a_dag", "old"))
    (old,) = (tmp_path / "out" / ".parts").glob("*.json")
    long_ago = time.time() - 60 * 86_400
    os.utime(old, (long_ago, long_ago))
    share(plans, ["a", "b"], 0, run=("a_dag", "new"))
    assert not old.exists()
    assert len(list((tmp_path / "out" / ".parts").glob("*.json"))) == 1


def test_a_damaged_plan_is_made_anew(plans: PartPlans, tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    share(plans, names, 0)
    (path,) = (tmp_path / "out" / ".parts").glob("*.json")
    path.write_text('{"cases": 3')
    assert sorted(case for part in range(3) for case in share(plans, names, part)) == names


def test_fault_66_a_part_that_ends_takes_nothing_from_one_that_is_between_two_cases(tmp_path: Path) -> None:
    """The moment in which 6 of 200 cases were lost: no marker is there, and another part removes its folder."""
    records = Records(tmp_path)
    with ReadBeside(records.markers(0, 2)) as working:
        with ReadBeside(records.markers(1, 2)):
            pass
        with working.reading(Case(case="next", images=())):
            assert [path.name for path in records.markers(0, 2).iterdir()] == ["next"]
    assert not list(tmp_path.rglob("*.reading"))
