"""What the doctor says of jobs that Airflow remembers and whose folders are not where they were."""

from __future__ import annotations

from pathlib import Path

from airflow_nnunet.doctor.jobs import missing_jobs
from support.users import BOB, as_user, open_folder


def test_jobs_that_are_nowhere_are_said_by_folder(tmp_path: Path) -> None:
    old, now = tmp_path / "old", tmp_path / "now"
    jobs = [old / name for name in ("a", "b", "c")]
    for job in jobs:
        job.mkdir(parents=True)
    assert list(missing_jobs(jobs, [now])) == []
    jobs[0].rmdir()
    assert list(missing_jobs(jobs, [now])) == [], "one that somebody removed is no folder that moved"
    old.rename(now)
    assert [finding.text.partition(";")[0] for finding in missing_jobs(jobs, [now])] == [f"1 of the newest 3 jobs of {old} cannot be found"]
    (missing,) = missing_jobs(jobs, [])
    assert f"3 of the newest 3 jobs of {old} cannot be found; that folder is missing" in missing.text
    old.mkdir()
    (empty,) = missing_jobs(jobs, [])
    assert f"3 of the newest 3 jobs of {old} cannot be found; that folder has none of them" in empty.text


def test_of_a_folder_that_is_closed_to_the_doctors_user_nothing_is_said() -> None:
    with open_folder() as folder:
        job = folder / "closed" / "jobs" / "a"
        job.mkdir(parents=True)
        (folder / "closed").chmod(0o700)
        seen = as_user(BOB, lambda: [finding.text for finding in missing_jobs([job, folder / "gone" / "b"], [])])
    assert [text.partition(";")[0] for text in seen["result"]] == [f"1 of the newest 1 jobs of {folder / 'gone'} cannot be found"]
