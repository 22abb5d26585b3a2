"""Faults while registering: kills, full disks, sources that change, hostile content, twenty at once."""

import contextlib
import ctypes
import errno
import json
import os
import platform
import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from devtools.testbed.data import SHAPE, context, decathlon, describe_decathlon, image_array, raw, register_dataset, tree, write_nifti
from nnunet_jobs.contract.failure import ConfigError, DataError, DiskFull, FailureClass
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.steps import register

PROGRAM = """
import json, sys
from pathlib import Path
from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import JobError
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.steps import register

asked = json.loads(sys.argv[1])
job = Path(asked["job"])
job.mkdir(parents=True, exist_ok=True)
surroundings = StepContext(workspace=Workspace.from_json(asked["workspace"]), job=JobDir(job), cpus=2)
try:
    print(json.dumps(register.run(RegisterParams(**asked["params"]), surroundings)))
except JobError as error:
    print(json.dumps({"failure": error.failure_class, "message": str(error)}))
    raise SystemExit(3)
"""


def start(workspace: Workspace, job: str, **params) -> subprocess.Popen[str]:
    asked = {"workspace": workspace.to_json(), "job": str(Path(workspace.jobs) / job), "params": params}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(asked)],
        env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def results(processes: list[subprocess.Popen[str]]) -> list[dict]:
    found = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode in (0, 3), err
        found.append(json.loads(out))
    return found


def leftovers(workspace: Workspace) -> list[str]:
    return [entry.name for entry in Path(workspace.raw).iterdir() if entry.name.startswith(".") and entry.name not in (".locks", ".state")]


@contextlib.contextmanager
def mounted(path: Path, *arguments: str):
    """A real file system of its own, or a skip where that is not allowed."""
    path.mkdir()
    command = ["mount", *arguments, str(path)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def _kernel_without_exchange() -> None:
    """Let the kernel refuse renameat2 to this process from now on, as old kernels and network file systems do."""
    number, deny = 316, 0x00050000 | errno.EINVAL  # renameat2 on x86-64; SECCOMP_RET_ERRNO
    rules = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, deny), (0x06, 0, 0, 0x7FFF0000)]  # load number, compare, answer
    code = b"".join(struct.pack("HBBI", *rule) for rule in rules)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(rules), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # no new privileges
    assert libc.prctl(22, 2, program, 0, 0) == 0  # seccomp, filter


def test_killed_at_any_moment_the_next_run_gives_a_clean_registration(tmp_path, workspace):
    """SIGKILL at random moments, in a first registration and in one that adds, changes and drops; readers never see half a state."""
    old = decathlon(tmp_path / "old", [f"c{n:02d}" for n in range(40)])
    new = decathlon(tmp_path / "new", [f"c{n:02d}" for n in range(10, 60)])
    for number in range(10, 40):
        name = f"c{number:02d}.nii.gz"
        if number % 3:
            for folder in ("imagesTr", "labelsTr"):
                shutil.copy(old / folder / name, new / folder / name)
    clean = Workspace.below(tmp_path / "clean", input_roots=(str(tmp_path),))
    states = []
    for source in (old, new):
        states.append(tree(Path(register_dataset(clean, source, on_removed="drop")["path"])))
    folder = Path(workspace.raw) / "Dataset004_Small"
    rng, params = random.Random(3), {"dataset_id": 4, "name": "Small", "on_removed": "drop"}
    for source, allowed in ((old, [{}, states[0]]), (new, states)):
        killed, span = 0, 0.25  # seconds after its first sign of life within which a run is killed
        while killed < 8:
            process = start(workspace, "killed", source=str(source), **params)
            sign = Path(workspace.jobs) / "killed" / "progress"
            sign.unlink(missing_ok=True)
            while not sign.exists() and process.poll() is None:
                time.sleep(0.002)
            time.sleep(rng.random() * span)
            process.kill()
            out, err = process.communicate()
            assert process.returncode in (0, -signal.SIGKILL), out + err
            assert (tree(folder) if folder.exists() else {}) in allowed
            killed += process.returncode == -signal.SIGKILL
            if process.returncode == 0:  # done before the kill, on a fast machine: kill earlier, and start from the state before
                span *= 0.7
                shutil.rmtree(workspace.raw)
                if allowed[0]:
                    register_dataset(workspace, old, on_removed="drop")
        register_dataset(workspace, source, on_removed="drop")
        assert leftovers(workspace) == []
        assert tree(folder)["manifest.json"] == allowed[1]["manifest.json"]
        assert tree(folder) == allowed[1]


@pytest.mark.parametrize("exchange", [True, False])
def test_killed_between_any_two_file_operations(tmp_path, workspace, exchange):
    """The same, exactly: the process kills itself before its n-th change of a name, for every n."""
    if not exchange and platform.machine() != "x86_64":
        pytest.skip("system call numbers of x86-64")
    source = decathlon(tmp_path / "s", ["a", "b", "c"])
    params = {"dataset_id": 4, "name": "Small", "source": str(source), "holdout_fraction": 0.0, "on_removed": "drop"}
    folder = Path(register_dataset(workspace, source, holdout_fraction=0.0)["path"])
    before = tree(folder)
    pristine = tmp_path / "pristine"
    shutil.copytree(workspace.raw, pristine)
    write_nifti(source / "imagesTr" / "b.nii.gz", image_array(77))
    decathlon(source, ["d"], first_seed=30)
    describe_decathlon(source, ["b", "c", "d"])
    seen, moment, survived = [], 0, False
    while not survived:
        shutil.rmtree(workspace.raw)
        shutil.copytree(pristine, workspace.raw)
        child = os.fork()
        if child == 0:
            if not exchange:
                _kernel_without_exchange()
            _die_at_operation(moment)
            with contextlib.suppress(BaseException):
                register.run(RegisterParams(**params), context(workspace))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        survived = not os.WIFSIGNALED(status)
        seen.append(tree(folder) if folder.exists() else {})
        register_dataset(workspace, source, holdout_fraction=0.0, on_removed="drop")
        after = tree(folder)
        assert leftovers(workspace) == []
        assert json.loads(after["manifest.json"])["cases"].keys() == {"b", "c", "d"}
        assert seen[0] == before
        assert all(state in ((before, after) if exchange else (before, after, {})) for state in seen), f"after operation {moment}"
        moment += 1
    assert moment > 20
    assert seen[-1] == after
    assert ({} in seen) != exchange


def _die_at_operation(moment: int) -> None:
    """Kill this process when it asks the kernel for its ``moment``-th change of a file system entry."""
    count = 0

    def audit(event: str, arguments: tuple) -> None:
        nonlocal count
        if event in ("os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "ctypes.get_errno", "ctypes.dlsym"):
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    sys.addaudithook(audit)


def test_fault_35_one_id_under_twenty_names_at_once(tmp_path, workspace):
    source = decathlon(tmp_path / "s", ["a", "b", "c"])
    names = [f"Name{number:02d}" for number in range(20)]
    found = results([start(workspace, name, dataset_id=4, name=name, source=str(source)) for name in names])
    winners = [result for result in found if "hash" in result]
    assert len(winners) == 1
    losers = [result for result in found if "failure" in result]
    assert len(losers) == 19
    for result in losers:
        assert result["failure"] == FailureClass.CONFIG
        assert f"is taken by {winners[0]['dataset']}" in result["message"]
        assert "choose another dataset_id" in result["message"]
    assert workspace.datasets() == {4: winners[0]["dataset"]}


def test_fault_35_the_same_registration_many_times_at_once(tmp_path, workspace):
    source = decathlon(tmp_path / "s", ["a", "b", "c"])
    found = results([start(workspace, f"job{n}", dataset_id=4, name="Small", source=str(source)) for n in range(8)])
    assert len({result["hash"] for result in found}) == 1
    assert sorted(result["already_done"] for result in found) == [False, *[True] * 7]


def test_fault_36_ids_100_and_1000(tmp_path, workspace):
    for dataset_id, seed in ((1000, 1), (100, 2)):
        register_dataset(workspace, decathlon(tmp_path / str(dataset_id), ["a", "b"], first_seed=seed * 10), dataset_id=dataset_id)
    assert workspace.resolve_dataset(100) == "Dataset100_Small"
    assert workspace.resolve_dataset("1000") == "Dataset1000_Small"
    assert workspace.manifest("Dataset100_Small")["dataset_id"] == 100
    assert workspace.manifest("Dataset1000_Small")["hash"] != workspace.manifest("Dataset100_Small")["hash"]
    with pytest.raises(ConfigError, match="taken by Dataset100_Small"):
        register_dataset(workspace, tmp_path / "100", dataset_id=100, name="Other")


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_fault_38_half_copied_file(tmp_path, workspace, share):
    source = decathlon(tmp_path / "s", ["a", "b", "c"])
    path = source / "labelsTr" / "b.nii.gz"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(DataError) as caught:
        register_dataset(workspace, source)
    assert [(fault.code, fault.case, fault.file) for fault in caught.value.faults] == [("truncated", "b", "labelsTr/b.nii.gz")]
    assert workspace.datasets() == {}
    assert leftovers(workspace) == []


class _ChangeWhileCopying(threading.Event):
    """A stop flag that never stops, but writes to a source file as soon as the copying has begun."""

    def __init__(self, staging: Path, victim: Path, change) -> None:
        super().__init__()
        self.staging, self.victim, self.change, self.once = staging, victim, change, threading.Lock()

    def is_set(self) -> bool:
        # Several threads copy and ask; the lock is never given back, so that only the first one changes the file.
        if self.staging.exists() and self.once.acquire(blocking=False):
            self.change(self.victim)
        return False


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("change", [lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), lambda path: path.unlink()])
def test_fault_39_source_changes_while_it_is_copied(tmp_path, workspace, channels, change):
    source = decathlon(tmp_path / "s", [f"c{n:02d}" for n in range(30)], channels=channels)
    surroundings = context(workspace)
    surroundings.stop = _ChangeWhileCopying(Path(workspace.raw) / ".Dataset004_Small.staging", source / "imagesTr" / "c29.nii.gz", change)
    with pytest.raises(DataError) as caught:
        register.run(RegisterParams(dataset_id=4, name="Small", source=str(source)), surroundings)
    assert {(fault.code, fault.case, fault.file) for fault in caught.value.faults} == {("source_changed", "c29", "c29.nii.gz")}
    assert workspace.datasets() == {}
    assert leftovers(workspace) == []


def test_fault_39_a_writer_that_never_rests(tmp_path, workspace):
    """Whatever the moment: either it is refused, or what is registered is one of the contents that were there, whole."""
    source = decathlon(tmp_path / "s", ["a", "b"])
    victim, stop = source / "imagesTr" / "a.nii.gz", threading.Event()
    versions = [write_nifti(tmp_path / f"{n}.nii.gz", image_array(n)).read_bytes() for n in range(5)]

    def write() -> None:
        while not stop.is_set():
            for data in versions:
                victim.write_bytes(data)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(20):
            with contextlib.suppress(DataError):
                register_dataset(workspace, source, holdout_fraction=0.0)
            registered = Path(workspace.raw) / "Dataset004_Small" / "imagesTr" / "a_0000.nii.gz"
            assert not registered.exists() or registered.read_bytes() in versions
    finally:
        stop.set()
        writer.join()


def test_fault_40_nan_and_infinity_in_an_image(tmp_path, workspace):
    source = decathlon(tmp_path / "s", ["a", "b", "c"])
    for case, value in (("a", np.nan), ("c", -np.inf)):
        array = image_array(1)
        array[tuple(n // 2 for n in SHAPE)] = value
        write_nifti(source / "imagesTr" / f"{case}.nii.gz", array)
    with pytest.raises(DataError) as caught:
        register_dataset(workspace, source)
    assert [(fault.code, fault.case) for fault in caught.value.faults] == [("value_nan", "a"), ("value_inf", "c")]
    assert not caught.value.failure_class.retryable


SECRET = "secret.nii.gz"


OUTSIDE = [
    "../secret.nii.gz",
    "imagesTr/../../secret.nii.gz",
    "ABSOLUTE",
    "$SECRET_DIR/secret.nii.gz",
    "~/secret.nii.gz",
    "",
    "a\0b",
    "a\nb",
]


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize("where", ["decathlon_image", "decathlon_label", "decathlon_test", "raw_image", "raw_label"])
def test_fault_52_paths_that_leave_the_source(tmp_path, workspace, monkeypatch, path, where):
    monkeypatch.setenv("SECRET_DIR", str(tmp_path))
    secret = write_nifti(tmp_path / SECRET, image_array(1))
    path = str(secret) if path == "ABSOLUTE" else path
    if where.startswith("decathlon"):
        source = decathlon(tmp_path / "s", ["a", "b"])
        description = json.loads((source / "dataset.json").read_text())
        if where == "decathlon_test":
            description["test"] = [path]
        else:
            description["training"][1][where.removeprefix("decathlon_")] = path
    else:
        source = raw(tmp_path / "s", ["a", "b"])
        description = json.loads((source / "dataset.json").read_text())
        description["dataset"] = {case: {"images": [f"imagesTr/{case}_0000.nii.gz"], "label": f"labelsTr/{case}.nii.gz"} for case in "ab"}
        description["dataset"]["b"]["images" if where == "raw_image" else "label"] = [path] if where == "raw_image" else path
    (source / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(DataError) as caught:
        register_dataset(workspace, source)
    assert "path_outside" in {fault.code for fault in caught.value.faults}
    assert workspace.datasets() == {}


@pytest.mark.parametrize("link", ["imagesTr/b_0000.nii.gz", "imagesTr", "dataset.json"])
def test_fault_52_links_that_leave_the_source(tmp_path, workspace, link):
    source = raw(tmp_path / "s", ["a", "b"])
    shutil.move(source / link, tmp_path / "elsewhere")
    (source / link).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError) as caught:
        register_dataset(workspace, source)
    assert ("path_outside", link) in {(fault.code, fault.file) for fault in caught.value.faults}


@pytest.mark.parametrize("field", ["images", "labels"])
def test_fault_52_folders_that_leave_the_source(tmp_path, workspace, field):
    raw(tmp_path / "s", ["a"])
    folders = {"images": "imagesTr", "labels": "labelsTr", field: "../s/imagesTr"}
    with pytest.raises(ConfigError, match=rf"{field}='../s/imagesTr'.*'\.\.'"):
        register_dataset(workspace, tmp_path / "s", layout="folders", **folders)


@pytest.mark.parametrize("case", [";$(touch pwned)", "a\nb", "-rf", "..", "a b", "x" * 130, "ä", "a`b`", "\udce4", "&amp;|"])
def test_fault_53_hostile_names(tmp_path, workspace, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    source = decathlon(tmp_path / "s", ["good", case])
    with pytest.raises(DataError) as caught:
        register_dataset(workspace, source)
    assert {fault.code for fault in caught.value.faults} <= {"name_invalid", "path_outside"}
    assert "\nb" not in str(caught.value)
    json.dumps([fault.message for fault in caught.value.faults]).encode()
    assert not (tmp_path / "pwned").exists()
    assert workspace.datasets() == {}


@pytest.mark.parametrize("name", [";$(id)", "a\nb", "../x", "a/b", ""])
def test_fault_53_hostile_dataset_names(tmp_path, workspace, name):
    source = decathlon(tmp_path / "s", ["a"])
    with pytest.raises(ConfigError, match="name="):
        register_dataset(workspace, source, name=name)


@pytest.mark.parametrize(("number", "options"), [(15, "size=600k"), (17, "size=50m,nr_inodes=60")])
def test_fault_15_17_disk_full_leaves_nothing_half_written(tmp_path, workspace, number, options):
    source = decathlon(tmp_path / "s", [f"c{n:02d}" for n in range(10)])
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", options, "tmpfs"):
        tight = type(workspace)(**{**workspace.to_json(), "raw": str(tmp_path / "disk")})
        first = register_dataset(tight, source)
        before = tree(Path(first["path"]))
        more = [f"n{n:03d}" for n in range(100)]
        decathlon(source, more, first_seed=100)
        describe_decathlon(source, [*[f"c{n:02d}" for n in range(10)], *more])
        with pytest.raises(DiskFull, match="no space left in"):
            register_dataset(tight, source)
        assert tree(Path(first["path"])) == before
        assert leftovers(tight) == []
        with pytest.raises(DiskFull):
            register_dataset(tight, source, dataset_id=5, name="New")
        assert tight.datasets() == {4: "Dataset004_Small"}
