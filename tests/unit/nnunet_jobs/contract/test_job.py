"""Job directory, specification and failure classes: what both wings rely on."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from nnunet_jobs.contract.classify import classify
from nnunet_jobs.contract.failure import ConfigError, DataError, Failure, FailureClass, Fault, HostOutOfMemory
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.liveness import read_counter, write_counter
from nnunet_jobs.contract.job.spec import JobSpec, Resources, make_job_id
from nnunet_jobs.contract.job.state import Fenced, Phase
from nnunet_jobs.contract.storage.marker import MARKER
from nnunet_jobs.contract.storage.workspace import Workspace
from support.jobs import make_spec


@pytest.fixture
def job(workspace: Workspace) -> JobDir:
    return JobDir.create(make_spec(workspace, "contract"))


# --- specification --------------------------------------------------------------------------------------------------
def test_a_specification_survives_json(workspace: Workspace) -> None:
    spec = make_spec(workspace, "json", Resources(gpus=2, gpu_memory_mib=8000))
    assert JobSpec.from_json(json.loads(json.dumps(spec.to_json()))) == JobSpec.from_json(spec.to_json())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"device": "tpu"}, "device='tpu': must be one of auto, cuda, cpu"),
        ({"gpus": -1}, "gpus=-1"),
        ({"gpu_memory_mib": 0}, "gpu_memory_mib=0"),
        ({"hang_s": 0}, "hang_s=0"),
    ],
)
def test_wrong_resources_name_field_value_and_mend(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Resources(**values)


def test_unknown_fields_and_steps_are_refused(workspace: Workspace) -> None:
    data = make_spec(workspace, "fields").to_json()
    with pytest.raises(ConfigError, match=r"unknown fields \['colour'\]"):
        JobSpec.from_json({**data, "colour": "red"})
    with pytest.raises(ConfigError, match="step='deploy'"):
        JobSpec.from_json({**data, "step": "deploy"})
    with pytest.raises(ConfigError, match="job_id="):
        JobSpec.from_json({**data, "job_id": "../../etc"})


def test_job_ids_are_stable_and_tell_work_apart() -> None:
    assert make_job_id("train", "dag", "run", "task", 0) == make_job_id("train", "dag", "run", "task", 0)
    assert make_job_id("train", "dag", "run", "task", 0) != make_job_id("train", "dag", "run", "task", 1)
    assert make_job_id("find_best_config", 1).startswith("find-best-config-")


# --- job directory --------------------------------------------------------------------------------------------------
def test_attempts_are_numbered_and_older_ones_fenced(job: JobDir) -> None:
    assert job.begin_attempt(expected=0) == 1
    assert job.begin_attempt(expected=0) is None
    job.set_phase(1, Phase.RUNNING)
    job.finish(1, Failure(failure_class=FailureClass.BUG, message="first", attempt=1))
    assert job.begin_attempt(expected=1) == 2
    assert job.failure() is None
    assert [failure.message for failure in job.earlier_failures()] == ["first"]
    for write in (lambda: job.set_phase(1, Phase.RUNNING), lambda: job.finish(1, {"result": {}}), lambda: job.check_fence(1)):
        with pytest.raises(Fenced):
            write()
    assert job.result() is None


def test_a_verdict_of_lost_never_overwrites_an_outcome(job: JobDir) -> None:
    lost = Failure(failure_class=FailureClass.LOST, message="gone", attempt=1)
    job.begin_attempt(expected=0)
    job.set_phase(1, Phase.RUNNING)
    job.finish(1, {"result": {"n": 1}})
    assert not job.declare_lost(1, lost)
    assert job.state().phase is Phase.DONE
    assert job.failure() is None


def test_a_failure_without_its_last_phase_is_kept(job: JobDir) -> None:
    """The runner died between the two writes."""
    job.begin_attempt(expected=0)
    job.set_phase(1, Phase.RUNNING)
    job.failure_path.write_text(json.dumps(Failure(failure_class=FailureClass.DATA, message="known", attempt=1).to_json()))
    assert job.declare_lost(1, Failure(failure_class=FailureClass.LOST, message="gone", attempt=1))
    failure = job.failure()
    assert failure is not None
    assert failure.failure_class is FailureClass.DATA
    assert job.state().phase is Phase.FAILED


def test_a_runner_is_gone_when_its_lock_is_free_or_the_host_was_restarted(job: JobDir) -> None:
    assert not job.runner_gone(), "nobody was there yet"
    job.begin_attempt(expected=0)
    job.set_phase(1, Phase.RUNNING)
    assert job.runner_gone(), "this test set the phase without holding the lock"
    state = json.loads((job.path / "state.json").read_text())
    (job.path / "state.json").write_text(json.dumps({**state, "host": "another"}))
    assert not job.runner_gone(), "of another host we know nothing"


def test_a_job_is_created_once_by_many(workspace: Workspace) -> None:
    spec = make_spec(workspace, "many")
    with multiprocessing.get_context("fork").Pool(8) as pool:
        paths = pool.map(_create, [spec] * 64)
    assert len(set(paths)) == 1
    assert sorted(os.listdir(workspace.jobs)) == [MARKER, spec.job_id], "no staging folder is left"


def _create(spec: JobSpec) -> str:
    return str(JobDir.create(spec).path)


def test_only_one_of_many_begins_an_attempt(job: JobDir) -> None:
    with multiprocessing.get_context("fork").Pool(8) as pool:
        numbers = pool.map(_begin, [str(job.path)] * 64)
    assert [number for number in numbers if number] == [1]


def _begin(path: str) -> int | None:
    return JobDir(path).begin_attempt(expected=0)


def test_counters_and_half_written_lines(tmp_path: Path, job: JobDir) -> None:
    counter = tmp_path / "counter"
    assert read_counter(counter) == -1
    for value in (3, 12_345_678_901, 4):
        write_counter(counter, value)
        assert read_counter(counter) == value
    job.metrics.write_bytes(b'{"a": 1}\n{"a": 2')
    records, offset = job.read_metrics()
    assert records == [{"a": 1}]
    with open(job.metrics, "ab") as file:
        file.write(b"2}\n")
    assert job.read_metrics(offset)[0] == [{"a": 22}]


def test_cancel_is_a_wish_of_one_attempt(job: JobDir) -> None:
    job.begin_attempt(expected=0)
    job.request_cancel("enough")
    assert job.cancel_requested() == "enough"
    job.begin_attempt(expected=1)
    assert job.cancel_requested() is None


# --- failures -------------------------------------------------------------------------------------------------------
class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DataError("x"), FailureClass.DATA),
        (OSError(errno.ENOSPC, "full"), FailureClass.DISK_FULL),
        (OSError(errno.EDQUOT, "quota"), FailureClass.DISK_FULL),
        (OSError(errno.EROFS, "read-only"), FailureClass.CONFIG),
        (OutOfMemoryError("x"), FailureClass.GPU_OOM),
        (RuntimeError("CUDA out of memory. Tried to allocate"), FailureClass.GPU_OOM),
        (MemoryError(), FailureClass.HOST_OOM),
        (RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0"), FailureClass.DISK_FULL),
        (KeyboardInterrupt(), FailureClass.INTERRUPTED),
        (ValueError("x"), FailureClass.BUG),
    ],
)
def test_exceptions_are_classified(error: BaseException, expected: FailureClass) -> None:
    assert classify(error) is expected


def test_the_cause_of_a_wrapped_error_counts() -> None:
    with pytest.raises(RuntimeError) as caught:
        try:
            raise OSError(errno.ENOSPC, "full")
        except OSError as inner:
            raise RuntimeError("could not save") from inner
    assert classify(caught.value) is FailureClass.DISK_FULL


def test_a_failure_survives_json_with_its_faults() -> None:
    fault = Fault(code="nan", message="3 voxels", case="case_1", file="a.nii.gz")
    failure = Failure(failure_class=FailureClass.DATA, message="1 fault", attempt=2, faults=(fault,), details={"gpus": []})
    again = Failure.from_json(json.loads(json.dumps(failure.to_json())))
    assert again == failure
    error = again.to_error()
    assert isinstance(error, DataError)
    assert error.faults == (fault,)
    assert not again.failure_class.retryable
    assert HostOutOfMemory.failure_class.retryable
