"""What an attempt may use after what earlier ones died of."""

from __future__ import annotations

import os

import pytest

from nnunet_jobs.contract.failure import Failure, FailureClass
from nnunet_jobs.contract.job.spec import Resources
from nnunet_jobs.devices import host
from nnunet_jobs.runner import attempt_limits


def failed(failure_class: FailureClass, attempt: int = 1, **details: object) -> Failure:
    return Failure(failure_class=failure_class, message="", attempt=attempt, details=details)


def test_a_first_attempt_gets_what_the_job_asked_for() -> None:
    limits = attempt_limits.limits_after([], Resources(gpus=1, gpu_memory_mib=8000, cpus=1))
    assert limits.resources.gpu_memory_mib == 8000
    assert limits.exclude == ()
    assert limits.notes == ()
    assert limits.cpus(1) == 1


def test_each_host_oom_halves_the_cores_down_to_one() -> None:
    cores = int(host.cores())
    for number in range(6):
        failures = [failed(FailureClass.HOST_OOM, attempt + 1) for attempt in range(number)]
        limits = attempt_limits.limits_after(failures, Resources())
        assert limits.cpus(1) == max(1, cores >> number)
        assert len(limits.notes) == number


def test_gpu_oom_asks_for_more_and_elsewhere() -> None:
    once = [failed(FailureClass.GPU_OOM, 1, gpus=["GPU-a"])]
    limits = attempt_limits.limits_after(once, Resources(gpus=1, gpu_memory_mib=8000))
    assert (limits.resources.gpu_memory_mib, limits.exclude) == (16000, ("GPU-a",))
    limits = attempt_limits.limits_after([*once, failed(FailureClass.GPU_OOM, 2, gpus=["GPU-b"])], Resources(gpus=1, gpu_memory_mib=8000))
    assert (limits.resources.gpu_memory_mib, limits.exclude) == (None, ("GPU-a", "GPU-b"))


def test_a_lost_gpu_is_avoided_and_other_failures_change_nothing() -> None:
    failures = [
        failed(FailureClass.GPU_LOST, 1, gpus=["GPU-a"]),
        failed(FailureClass.LOST, 2, gpus=["GPU-b"]),
        failed(FailureClass.HANG, 3),
    ]
    limits = attempt_limits.limits_after(failures, Resources(gpus=1))
    assert limits.exclude == ("GPU-a",)
    assert limits.halvings == 0


def test_slots_share_the_cores() -> None:
    assert attempt_limits.limits_after([], Resources()).cpus(10_000) == 1


@pytest.mark.parametrize(
    ("step", "cpus", "workers"), [("train", 1, "0"), ("train", 2, "1"), ("train", 8, "2"), ("preprocess", 1, "1"), ("train", 64, "12")]
)
def test_libraries_are_held_to_the_share(step: str, cpus: int, workers: str) -> None:
    found = attempt_limits.environment(cpus=cpus, device="cpu", gpus=(), step=step)
    assert found["OMP_NUM_THREADS"] == found["nnUNet_def_n_proc"] == str(cpus)
    assert found["nnUNet_n_proc_DA"] == workers
    assert found["CUDA_VISIBLE_DEVICES"] == ""


def test_a_gpu_job_sees_its_gpus_by_uuid() -> None:
    found = attempt_limits.environment(cpus=4, device="cuda", gpus=("GPU-b", "GPU-a"), step="train")
    assert found["CUDA_VISIBLE_DEVICES"] == "GPU-b,GPU-a"
    assert os.path.isdir(os.path.join(found["PYTHONPATH"].split(os.pathsep)[0], "nnunet_jobs"))


def test_threads_spin_shortly_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    assert attempt_limits.environment(cpus=2, device="cpu", gpus=(), step="train")["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert "GOMP_SPINCOUNT" not in attempt_limits.environment(cpus=2, device="cpu", gpus=(), step="train")
