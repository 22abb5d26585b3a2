"""What a case may do to the process that reads it: kill it, hang it, fill its memory, or be rubbish. The others are checked."""

import contextlib
import gzip
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from devtools.testbed.data import LABELS, context, image_array, label_array, raw, write_nifti
from nnunet_jobs import processes
from nnunet_jobs.contract.failure import Bug, DataError, Interrupted
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.dataset.check import Report, check_dataset
from nnunet_jobs.dataset.sources import read_source
from nnunet_jobs.dataset.workers import check_cases
from nnunet_jobs.steps import register

HOOKS = Path(__file__).resolve().parent.parent / "support" / "reader_hooks"


def params(source: Path, **fields) -> RegisterParams:
    return RegisterParams(dataset_id=4, name="Small", source=str(source), **fields)


def check(source: Path, **options) -> Report:
    return check_dataset(source, params=params(source), **{"processes": 2, **options})


def poison(source: Path, case: str, word: bytes) -> None:
    """Let the voxels of a case hold a word that the treacherous decompressor obeys."""
    path = source / "imagesTr" / f"{case}_0000.nii.gz"
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[400 : 400 + len(word)] = word
    path.write_bytes(gzip.compress(bytes(data)))


@pytest.fixture
def treacherous(monkeypatch, tmp_path) -> Path:
    """Reading processes started from now on obey; returns the file in which a hanging one leaves its pid."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HOOKS), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("READER_PID_FILE", str(tmp_path / "pid"))
    return tmp_path / "pid"


def only_fault(report: Report) -> tuple[str, str | None, str | None]:
    assert len(report.faults) == 1, report.faults
    fault = report.faults[0]
    return fault.code, fault.case, fault.file


def children() -> list[int]:
    """Reading processes below this one; other tests of the session leave multiprocessing's resource tracker."""
    return [pid for pid in processes.descendants(os.getpid()) if b"nnunet_jobs.dataset.worker" in _command(pid)]


def _command(pid: int) -> bytes:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


@contextlib.contextmanager
def killing(pid_file: Path, number: signal.Signals):
    """Send a signal to the process that says it hangs."""

    def kill() -> None:
        while not stop.is_set():
            if pid_file.exists() and pid_file.read_text():
                os.kill(int(pid_file.read_text()), number)
                return
            stop.wait(0.01)

    stop = threading.Event()
    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_fault_44_a_reader_that_aborts_is_isolated_to_its_case(tmp_path, treacherous):
    source = raw(tmp_path / "s", [f"c{n:02d}" for n in range(40)])
    for case in ("c05", "c21", "c22"):
        poison(source, case, b"PLEASE-ABORT")
    report = check(source)
    assert {(fault.code, fault.case, fault.file) for fault in report.faults} == {
        ("reader_crashed", case, f"imagesTr/{case}_0000.nii.gz") for case in ("c05", "c21", "c22")
    }
    assert all("SIGABRT" in fault.message for fault in report.faults)
    assert sum(bool(summary) for summary in report.summaries.values()) == 37
    assert children() == []


def test_fault_44_in_the_register_step(tmp_path, workspace, treacherous):
    source = raw(tmp_path / "s", ["a", "b", "c"])
    poison(source, "b", b"PLEASE-ABORT")
    with pytest.raises(DataError) as caught:
        register.run(params(source), context(workspace))
    assert [(fault.code, fault.case) for fault in caught.value.faults] == [("reader_crashed", "b")]
    assert workspace.datasets() == {}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_fault_41_a_killed_reader_gives_a_clear_error_within_30_s(tmp_path, treacherous, number):
    source = raw(tmp_path / "s", ["a", "b", "c"])
    poison(source, "b", b"PLEASE-HANG")
    begun = time.monotonic()
    with killing(treacherous, number):
        report = check(source)
    assert time.monotonic() - begun < 30
    assert only_fault(report) == ("reader_crashed", "b", "imagesTr/b_0000.nii.gz")
    assert number.name in report.faults[0].message


def test_a_reader_that_hangs_is_stopped_after_its_time(tmp_path, treacherous):
    source = raw(tmp_path / "s", ["a", "b", "c"])
    poison(source, "a", b"PLEASE-HANG")
    assert only_fault(check(source, time_limit_s=2)) == ("time_limit", "a", "imagesTr/a_0000.nii.gz")
    assert not Path(f"/proc/{treacherous.read_text()}").exists()


def test_a_reader_that_eats_memory_is_stopped_before_the_host_suffers(tmp_path, treacherous):
    source = raw(tmp_path / "s", ["a", "b", "c"])
    poison(source, "c", b"PLEASE-EAT")
    before = _peak_of_children_mib()
    assert only_fault(check(source, memory_mib=1024)) == ("memory_limit", "c", "imagesTr/c_0000.nii.gz")
    assert max(before, 1400) >= _peak_of_children_mib()


def _peak_of_children_mib() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10


def test_a_case_larger_than_the_memory_is_refused_by_its_header(tmp_path):
    source = raw(tmp_path / "s", ["a", "b"])
    write_nifti(source / "imagesTr" / "a_0000.nii.gz", np.zeros((256, 256, 300), np.int16))
    begun = time.monotonic()
    report = check(source, memory_mib=64)
    assert ("memory_limit", "a", "imagesTr/a_0000.nii.gz") in {(fault.code, fault.case, fault.file) for fault in report.faults}
    assert {fault.case for fault in report.faults} == {"a"}
    assert time.monotonic() - begun < 30


def test_a_case_that_needs_more_than_its_share_is_read_alone(tmp_path):
    """Two readers share 200 MiB; a case that needs 120 of them is read when it has them all."""
    source = raw(tmp_path / "s", [f"c{n:02d}" for n in range(32)])
    shape = (128, 128, 120)
    write_nifti(source / "imagesTr" / "c00_0000.nii.gz", np.random.default_rng(0).integers(0, 99, shape, dtype=np.uint8))
    write_nifti(source / "labelsTr" / "c00.nii.gz", label_array(shape=shape))
    assert check(source, memory_mib=150).ok
    assert not check(source, memory_mib=40).ok


def test_an_unforeseen_error_is_the_fault_of_its_case(tmp_path, treacherous):
    source = raw(tmp_path / "s", ["a", "b"])
    poison(source, "a", b"PLEASE-RAISE")
    assert only_fault(check(source))[:2] == ("not_nifti", "a")


def test_readers_that_cannot_start_are_no_fault_of_the_data(tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text("import os\nos._exit(7)\n")
    monkeypatch.setenv("PYTHONPATH", str(broken))
    source = raw(tmp_path / "s", ["a"])
    with pytest.raises(Bug, match="exit code 7"):
        check(source)


def test_a_stop_request_is_obeyed_while_a_reader_hangs(tmp_path, workspace, treacherous):
    source = raw(tmp_path / "s", ["a", "b"])
    poison(source, "a", b"PLEASE-HANG")
    surroundings = context(workspace)

    def stop() -> None:
        while not (treacherous.exists() and treacherous.read_text()):
            time.sleep(0.01)
        surroundings.stop.set()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Interrupted):
        register.run(params(source), surroundings)
    thread.join()
    assert children() == []


def test_readers_die_with_their_parent(tmp_path, treacherous):
    source = raw(tmp_path / "s", ["a", "b"])
    poison(source, "a", b"PLEASE-HANG")
    command = [sys.executable, "-m", "nnunet_jobs", "validate", str(source)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HOOKS), *sys.path]), "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (treacherous.exists() and treacherous.read_text()):
            assert parent.poll() is None
            time.sleep(0.01)
    finally:
        parent.kill()
        parent.wait()
    reader = Path(f"/proc/{treacherous.read_text()}")
    deadline = time.monotonic() + 10
    while reader.exists() and "State:\tZ" not in (reader / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_big_files_give_signs_of_life_while_they_are_read(tmp_path):
    source = raw(tmp_path / "s", ["a"])
    write_nifti(source / "imagesTr" / "a_0000.nii.gz", np.random.default_rng(0).integers(0, 1 << 15, (128, 128, 200), dtype=np.int16))
    listed = read_source(params(source), source)
    beats = 0

    def beat() -> None:
        nonlocal beats
        beats += 1

    check_cases(listed, list(listed.cases.values()), tolerance=1e-3, processes=1, beat=beat)
    assert beats > 3


# --- rubbish (row 57) -----------------------------------------------------------------------------------------------
def _pictures(root: Path) -> dict[str, tuple[Path, Path]]:
    """A sound image and label of each ending."""
    import SimpleITK
    import tifffile
    from PIL import Image

    found = {}
    for ending in (".nii", ".nii.gz"):
        found[ending] = (write_nifti(root / f"i{ending}", image_array(1)), write_nifti(root / f"l{ending}", label_array()))
    for ending, packed in ((".mha", True), (".nrrd", False), (".nrrd", True), (".mha", False)):
        image, label = root / f"i{packed}{ending}", root / f"l{packed}{ending}"
        for path, array in ((image, image_array(1)), (label, label_array())):
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(path), useCompression=packed)
        found[f"{ending}{' packed' if packed else ''}"] = (image, label)
    flat = np.random.default_rng(0).integers(0, 255, (12, 10, 3), dtype=np.uint8)
    for ending in (".png", ".bmp", ".tif"):
        Image.fromarray(flat).save(root / f"i{ending}")
        Image.fromarray(flat[..., 0] % 3).save(root / f"l{ending}")
        found[ending] = (root / f"i{ending}", root / f"l{ending}")
    tifffile.imwrite(root / "i.tiff", image_array(1), compression="zlib")
    tifffile.imwrite(root / "l.tiff", label_array())
    found[".tiff"] = (root / "i.tiff", root / "l.tiff")
    return found


def _mutate(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    kind = rng.randrange(6)
    if kind == 0:
        return bytes(changed[: rng.randrange(len(changed))])
    if kind == 1:
        return rng.randbytes(rng.randrange(1, 4096))
    if kind == 2:
        place = rng.randrange(len(changed))
        changed[place:place] = rng.randbytes(rng.randrange(1, 64))
    elif kind == 3:  # huge, negative or odd numbers, mostly in the header
        for _ in range(rng.randrange(1, 4)):
            place = rng.randrange(min(len(changed), 400))
            changed[place : place + 4] = rng.choice([b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\0\0", b"\0\0\xc0\x7f", b"9999"])
    else:
        for _ in range(rng.randrange(1, 30)):
            changed[rng.randrange(min(len(changed), 600) if kind == 4 else len(changed))] = rng.randrange(256)
    return bytes(changed)


def test_fault_57_random_bytes_of_every_format_crash_and_hang_nothing(tmp_path):
    """Mutated files, seeded; FUZZ_SECONDS makes it longer. What gzip packs is also mutated inside, or only its checksum would see it."""
    sound = _pictures(tmp_path)
    seed = int(os.environ.get("FUZZ_SEED", "1"))
    until = time.monotonic() + float(os.environ.get("FUZZ_SECONDS", "0"))
    rounds = 0
    while rounds == 0 or time.monotonic() < until:
        rng = random.Random(seed + rounds)
        for kind, (image, label) in sound.items():
            ending = kind.split()[0]
            channels = 3 if ending in (".png", ".bmp", ".tif") else 1
            source = tmp_path / f"round{rounds}{kind.replace(' ', '')}"
            cases = [f"r{number:02d}" for number in range(24)]
            for folder in ("imagesTr", "labelsTr"):
                (source / folder).mkdir(parents=True)
            tables = {str(n): f"C{n}" for n in range(channels)}
            for case in cases:
                packed = ending == ".nii.gz" and rng.random() < 0.7
                data = gzip.compress(_mutate(gzip.decompress(image.read_bytes()), rng), 1) if packed else _mutate(image.read_bytes(), rng)
                (source / "imagesTr" / f"{case}_0000{ending}").write_bytes(data)
                (source / "labelsTr" / f"{case}{ending}").write_bytes(label.read_bytes())
            asked = params(source, layout="nnunet", channel_names=tables, label_names=LABELS)
            (source / "dataset.json").write_text(f'{{"file_ending": "{ending}"}}')
            report = check_dataset(source, params=asked, processes=2, memory_mib=2048, time_limit_s=30)
            assert report.cases == len(cases)
            crashed = [fault for fault in report.faults if fault.code in ("reader_crashed", "time_limit")]
            assert not crashed, (kind, seed + rounds, crashed)
            # most mutations are seen; some only change a voxel that no checksum covers
            assert any(fault.severity == "error" for fault in report.faults), kind
        rounds += 1
