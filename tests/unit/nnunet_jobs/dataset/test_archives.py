"""Archives: what is unpacked, and a corpus of hostile ones, each refused by name with nothing written outside and nothing left behind."""

import concurrent.futures
import contextlib
import gzip
import io
import os
import shutil
import signal
import stat
import struct
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from devtools.testbed.data import LABELS, context, decathlon, image_array, raw, register_dataset, tree, write_nifti
from nnunet_jobs.contract.failure import ConfigError, DataError, DiskFull, Interrupted
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.dataset.archives import unpack as archives
from nnunet_jobs.dataset.archives.entries import Limits
from nnunet_jobs.steps import register
from support.layouts import bids, nnunet_v1, pack, scans

FORMATS = ["zip", "tar", "tar.gz", "tgz"]


def hidden(workspace) -> list[str]:
    return [entry.name for entry in Path(workspace.raw).iterdir() if entry.name not in (".locks", ".state")]


def refused(workspace, archive: Path) -> DataError:
    """The refusal of an archive, after a look that nothing came of it."""
    around = {path: path.lstat().st_mtime_ns for path in archive.parent.rglob("*") if Path(workspace.raw).parent not in path.parents}
    with pytest.raises(DataError) as caught:
        register_dataset(workspace, archive)
    assert hidden(workspace) == []
    after = {path: path.lstat().st_mtime_ns for path in archive.parent.rglob("*") if Path(workspace.raw).parent not in path.parents}
    assert {path: at for path, at in after.items() if path != Path(workspace.raw).parent} == {
        path: at for path, at in around.items() if path != Path(workspace.raw).parent
    }
    return caught.value


# --- what is read ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("top", ["", "Task04_Small", "home/me/Task04_Small"])
@pytest.mark.parametrize("kind", FORMATS)
def test_an_archive_gives_what_its_folder_gives(tmp_path, workspace, kind, top):
    source = decathlon(tmp_path / "s", ["a", "b", "c"], test=["t"], channels=2)
    folder = register_dataset(workspace, source)
    archive = pack(tmp_path / f"Task04_Small.{kind}", source, top=top)
    result = register_dataset(workspace, archive, dataset_id=5)
    assert (result["train"], result["holdout"], result["test"]) == (folder["train"], folder["holdout"], folder["test"])
    mine, other = (tree(Path(found["path"])) for found in (result, folder))
    assert {name: data for name, data in mine.items() if name.endswith(".gz")} == {
        name: data for name, data in other.items() if name.endswith(".gz")
    }
    again = register_dataset(workspace, archive, dataset_id=5)
    assert again == {**result, "added": 0, "already_done": True}
    assert sorted(hidden(workspace)) == ["Dataset004_Small", "Dataset005_Small"]


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_every_layout_may_come_as_an_archive(tmp_path, workspace, kind):
    rows = [{"case": case, "image": f"x/{case}.nii.gz", "label": f"y/{case}.nii.gz"} for case in "ab"]
    folders = tmp_path / "folders"
    shutil.copytree(raw(tmp_path / "raw", ["a", "b"]) / "imagesTr", folders / "images")
    shutil.copytree(tmp_path / "raw" / "labelsTr", folders / "labels")
    tables = {"channel_names": {"0": "T1"}, "label_names": LABELS}
    sources = [
        (tmp_path / "raw", {}),
        (nnunet_v1(tmp_path / "v1", ["a", "b"]), {}),
        (bids(tmp_path / "bids", ["a", "b"]), {}),
        (scans(tmp_path / "csv", rows), {"mapping": "cases.csv", **tables}),
        (folders, tables),
    ]
    for number, (source, params) in enumerate(sources, 10):
        archive = pack(tmp_path / f"{source.name}.{kind}", source, top="data")
        for done in (False, True):
            result = register_dataset(workspace, archive, dataset_id=number, holdout_fraction=0.0, **params)
            assert (result["train"], result["already_done"]) == (2, done)


def test_a_grown_archive_appends(tmp_path, workspace):
    source = decathlon(tmp_path / "s", ["a", "b"])
    first = register_dataset(workspace, pack(tmp_path / "s.tar", source))
    kept = Path(first["path"], "imagesTr", "a_0000.nii.gz").stat().st_ino
    decathlon(source, ["a", "b", "c"])
    assert register_dataset(workspace, pack(tmp_path / "s.tar", source))["added"] == 1
    assert Path(first["path"], "imagesTr", "a_0000.nii.gz").stat().st_ino == kept


def test_unpacked_files_are_taken_without_a_second_copy(tmp_path, workspace, monkeypatch):
    archive = pack(tmp_path / "s.zip", decathlon(tmp_path / "s", ["a", "b"]))
    result = register_dataset(workspace, archive, transfer="hardlink")
    assert {path.stat().st_nlink for path in Path(result["path"]).rglob("*.nii.gz")} == {1}


def test_what_macos_adds_is_no_part_of_the_dataset(tmp_path, workspace):
    source = decathlon(tmp_path / "s", ["a", "b"])
    (source / "imagesTr" / "._a.nii.gz").write_bytes(b"finder")
    (source / ".DS_Store").write_bytes(b"finder")
    (source / "__MACOSX").mkdir()
    (source / "__MACOSX" / "._a.nii.gz").write_bytes(b"finder")
    assert register_dataset(workspace, pack(tmp_path / "s.zip", source, top="s"))["added"] == 2


def test_links_inside_an_archive_become_files(tmp_path, workspace):
    source = raw(tmp_path / "s", ["a", "b"])
    archive = tmp_path / "s.tar"
    with tarfile.open(archive, "w") as packed:
        for path in sorted(path for path in source.rglob("*") if path.is_file() and path.parent.name != "labelsTr"):
            packed.add(path, str(path.relative_to(source)))
        packed.add(source / "labelsTr" / "a.nii.gz", "truth/a.nii.gz")
        for name, target, kind in (
            ("labelsTr/a.nii.gz", "../chain.nii.gz", tarfile.SYMTYPE),
            ("chain.nii.gz", "truth/a.nii.gz", tarfile.SYMTYPE),
            ("labelsTr/b.nii.gz", "truth/a.nii.gz", tarfile.LNKTYPE),
            ("folder", "./truth", tarfile.SYMTYPE),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            packed.addfile(link)
    result = register_dataset(workspace, archive, holdout_fraction=0.0)
    assert result["added"] == 2
    for case in "ab":
        label = Path(result["path"]) / "labelsTr" / f"{case}.nii.gz"
        assert not label.is_symlink()
        assert label.read_bytes() == (source / "labelsTr" / "a.nii.gz").read_bytes()


def test_a_tar_with_long_and_foreign_names_and_holes(tmp_path, workspace):
    case = "x" * 110
    source = raw(tmp_path / "s", [case])
    write_nifti(source / "imagesTr" / "b_0000.nii.gz", image_array(1))
    shutil.copy(source / "labelsTr" / f"{case}.nii.gz", source / "labelsTr" / "b.nii.gz")
    (source / "für Ärzte.txt").write_text("ok")
    with open(source / "holes.bin", "wb") as file:
        file.truncate(3 << 20)
    command = ["tar", "--sparse", "-C", str(tmp_path), "-cf", str(tmp_path / "s.tar"), "s"]
    if shutil.which("tar") is None:
        pytest.skip("no tar program")
    subprocess.run(command, check=True)
    assert register_dataset(workspace, tmp_path / "s.tar")["added"] == 2


def test_other_files_are_no_source(tmp_path, workspace):
    path = tmp_path / "s.rar"
    path.write_bytes(b"Rar!")
    with pytest.raises(ConfigError, match=r"is a file; name a folder, or an archive \(.zip, .tar"):
        register_dataset(workspace, path)
    with pytest.raises(ConfigError, match="no such folder"):
        register_dataset(workspace, tmp_path / "none.zip")
    (tmp_path / "link.zip").symlink_to("/etc/passwd")
    with pytest.raises(ConfigError, match="input_roots"):
        register_dataset(workspace, tmp_path / "link.zip")


class InTheMiddle(threading.Event):
    """A stop flag that does something once five files are unpacked."""

    def __init__(self, workspace, act: Callable[[], bool]) -> None:
        super().__init__()
        self.scratch, self.act = Path(workspace.raw) / ".004.source", act

    def is_set(self) -> bool:
        return len(list(self.scratch.glob("imagesTr/*"))) >= 5 and self.act()


def kill_this_process() -> bool:
    os.kill(os.getpid(), signal.SIGKILL)
    return True


@pytest.mark.parametrize("archived", [True, False])
def test_leftovers_of_a_run_killed_while_unpacking_are_removed_by_the_next(tmp_path, workspace, archived):
    source = decathlon(tmp_path / "s", [f"c{n}" for n in range(20)])
    archive = pack(tmp_path / "s.tar", source)
    surroundings = context(workspace)
    child = os.fork()
    if child == 0:
        surroundings.stop = InTheMiddle(workspace, kill_this_process)
        with contextlib.suppress(BaseException):
            register.run(RegisterParams(dataset_id=4, name="Small", source=str(archive)), surroundings)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert hidden(workspace) == [".004.source"]
    assert register_dataset(workspace, archive if archived else source)["added"] == 20
    assert hidden(workspace) == ["Dataset004_Small"]


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_stop_request_ends_the_unpacking(tmp_path, workspace, kind):
    archive = pack(tmp_path / f"s.{kind}", decathlon(tmp_path / "s", [f"c{n}" for n in range(20)]))

    surroundings = context(workspace)
    surroundings.stop = InTheMiddle(workspace, lambda: True)
    with pytest.raises(Interrupted):
        register.run(RegisterParams(dataset_id=4, name="Small", source=str(archive)), surroundings)
    assert hidden(workspace) == []


def test_fault_35_one_archive_registered_many_times_at_once(tmp_path, workspace):
    archive = pack(tmp_path / "s.zip", decathlon(tmp_path / "s", ["a", "b", "c"]))
    params = RegisterParams(dataset_id=4, name="Small", source=str(archive))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: register.run(params, context(workspace, f"job{number}")), range(8)))
    assert len({result["hash"] for result in found}) == 1
    assert sorted(result["already_done"] for result in found) == [False, *[True] * 7]
    assert hidden(workspace) == ["Dataset004_Small"]


def test_the_real_decathlon_archive_as_it_is_distributed(tmp_path, workspace, hippocampus):
    archive = pack(tmp_path / "Task04_Hippocampus.tar", hippocampus, top="Task04_Hippocampus")
    first = register_dataset(workspace, archive, name="Hippocampus")
    assert first["added"] == 200
    assert register_dataset(workspace, archive, name="Hippocampus")["already_done"]
    case, entry = next(iter(workspace.manifest("Dataset004_Hippocampus")["cases"].items()))
    registered = Path(first["path"], "imagesTr" if entry["split"] == "train" else "imagesTs", f"{case}_0000.nii.gz")
    assert registered.read_bytes() == (hippocampus / "imagesTr" / f"{case}.nii.gz").read_bytes()


# --- row 51: the corpus ---------------------------------------------------------------------------------------------
def zipped(path: Path, *entries: tuple[str, bytes], **attributes: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in entries:
            info = zipfile.ZipInfo(name)
            info.filename = name
            for key, value in attributes.items():
                setattr(info, key, value)
            packed.writestr(info, data)
    return path


def tarred(path: Path, *entries: tuple[str, bytes], kind: bytes = tarfile.REGTYPE, target: str = "") -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as packed:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            info.type, info.linkname = kind, target
            packed.addfile(info, io.BytesIO(data))
    return path


NAMES = [
    "../outside.txt",
    "a/../../outside.txt",
    "a/..",
    "/etc/outside.txt",
    "//server/share.txt",
    "C:/outside.txt",
    "C:outside.txt",
    "..\\outside.txt",
    "a\\b.txt",
    "a\nb.txt",
    "a\x1b[31mb.txt",
    "a\u202eb.txt",
    "x" * 300,
    "/".join(["d" * 200] * 12),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pack_as", [zipped, tarred])
def test_fault_51_names_that_leave_or_break(tmp_path, workspace, name, pack_as: Callable[..., Path]):
    archive = pack_as(tmp_path / ("s.zip" if pack_as is zipped else "s.tar.gz"), ("good.txt", b"x"), (name, b"evil"))
    error = refused(workspace, archive)
    assert [fault.code for fault in error.faults] == ["archive_unsafe"]
    assert "\n" not in str(error).partition("\n")[2]


@pytest.mark.parametrize("pack_as", [zipped, tarred])
@pytest.mark.parametrize(
    ("entries", "what"),
    [
        ([("a.txt", b"1"), ("a.txt", b"2")], "is there twice"),
        ([("a.txt", b"1"), ("./a.txt", b"2")], "is there twice"),
        ([("a/b.txt", b"1"), ("a", b"2")], "is there twice"),
        ([("a", b"1"), ("a/b.txt", b"2")], "lies below 'a', which is not a folder"),
        ([("a.txt", b"1"), ("A.txt", b"2")], "differs only by upper and lower case"),
        ([("Images/a.txt", b"1"), ("images/b.txt", b"2")], "differs only by upper and lower case"),
        ([("b\u00e4r.txt", b"1"), ("ba\u0308r.txt", b"2")], "or Unicode form"),
    ],
)
def test_fault_51_entries_that_collide(tmp_path, workspace, entries, what, pack_as):
    with pytest.warns(UserWarning, match="Duplicate") if pack_as is zipped and entries[0][0] == entries[1][0] else contextlib.nullcontext():
        archive = pack_as(tmp_path / ("s.zip" if pack_as is zipped else "s.tar"), *entries)
    error = refused(workspace, archive)
    assert [fault.code for fault in error.faults] == ["archive_unsafe"]
    assert what in str(error)


TARGETS = ["../../outside", "/etc/passwd", "C:/x", "nowhere", ".", "me", "a/../../../x", "..\\x"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["zip", "symlink", "hardlink"])
def test_fault_51_links_that_leave_or_lead_nowhere(tmp_path, workspace, target, kind):
    if kind == "zip":
        archive = zipped(tmp_path / "s.zip", ("me", target.encode()), external_attr=(stat.S_IFLNK | 0o777) << 16, create_system=3)
    else:
        archive = tarred(tmp_path / "s.tar", ("me", b""), kind=tarfile.SYMTYPE if kind == "symlink" else tarfile.LNKTYPE, target=target)
    error = refused(workspace, archive)
    assert [(fault.code, fault.file) for fault in error.faults] == [("archive_unsafe", "me")]
    assert "link" in str(error)


def test_fault_51_nothing_is_written_through_a_link(tmp_path, workspace):
    """The classic: a link to a folder outside, then a file below it."""
    (tmp_path / "outside").mkdir()
    archive = tmp_path / "s.tar"
    with tarfile.open(archive, "w") as packed:
        link = tarfile.TarInfo("door")
        link.type, link.linkname = tarfile.SYMTYPE, "../../../outside"
        packed.addfile(link)
        file = tarfile.TarInfo("door/evil.txt")
        file.size = 4
        packed.addfile(file, io.BytesIO(b"evil"))
    error = refused(workspace, archive)
    assert {fault.code for fault in error.faults} == {"archive_unsafe"}
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z"])
def test_fault_51_devices_pipes_and_unknown_kinds_in_a_tar(tmp_path, workspace, kind):
    error = refused(workspace, tarred(tmp_path / "s.tar", ("odd", b""), kind=kind))
    assert [(fault.code, fault.file) for fault in error.faults] == [("archive_unsafe", "odd")]


@pytest.mark.parametrize("mode", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_fault_51_devices_and_pipes_in_a_zip(tmp_path, workspace, mode):
    error = refused(workspace, zipped(tmp_path / "s.zip", ("odd", b""), external_attr=(mode | 0o666) << 16, create_system=3))
    assert [(fault.code, fault.file) for fault in error.faults] == [("archive_unsafe", "odd")]


def test_fault_51_all_unsafe_entries_are_in_one_report(tmp_path, workspace):
    for archive in (
        zipped(tmp_path / "s.zip", ("../a", b"1"), ("ok", b"2"), ("/b", b"3"), ("c\\d", b"4")),
        tarred(tmp_path / "s.tgz", ("../a", b"1"), ("ok", b"2"), ("/b", b"3"), ("c\\d", b"4")),
    ):
        assert [fault.file for fault in refused(workspace, archive).faults] == ["../a", "/b", "c\\d"]


def test_fault_51_a_zip_bomb_is_refused_by_what_it_claims(tmp_path, workspace):
    archive = tmp_path / "s.zip"
    with (
        zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed,
        packed.open("bomb.bin", "w", force_zip64=True) as file,
    ):
        for _ in range(1100):
            file.write(bytes(1 << 20))
    assert archive.stat().st_size < 8 << 20
    error = refused(workspace, archive)
    assert [(fault.code, fault.file) for fault in error.faults] == [("archive_too_large", "bomb.bin")]
    assert "would unpack to 1153433600, more than 1073741824" in str(error)


def test_fault_51_a_tar_bomb_is_refused_by_what_it_claims(tmp_path, workspace):
    for name, size in (("s.tar", 1 << 45), ("s.tar.gz", 1 << 34)):
        info = tarfile.TarInfo("bomb.bin")
        info.size = size
        data = info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        assert [fault.code for fault in refused(workspace, tmp_path / name).faults] == ["archive_too_large"]


def test_fault_51_a_zip_whose_entries_share_their_data(tmp_path, workspace):
    """One kernel of data under many names: each entry is small, the sum is not."""
    archive = zipped(tmp_path / "s.zip", ("a", os.urandom(50_000)))
    data = archive.read_bytes()
    at = data.rindex(b"PK\x01\x02")
    record, end = data[at : data.rindex(b"PK\x05\x06")], data[data.rindex(b"PK\x05\x06") :]
    records = record * 20
    end = end[:8] + struct.pack("<HHII", 20, 20, len(records), at) + end[20:]
    archive.write_bytes(data[:at] + records + end)
    codes = [(fault.code, "overlap" in fault.message or "twice" in fault.message) for fault in refused(workspace, archive).faults]
    assert set(codes) == {("archive_unsafe", True)}


@pytest.mark.parametrize(
    ("limits", "what"),
    [
        (Limits(entries=5), "is entry number 6"),
        (Limits(unpacked=5000), "more than 5000"),
        (Limits(ratio=0.1, allowance=1), "unpack it by hand"),
    ],
)
@pytest.mark.parametrize("kind", FORMATS)
def test_fault_51_limits_hold_while_unpacking(tmp_path, workspace, limits, what, kind):
    archive = pack(tmp_path / f"s.{kind}", decathlon(tmp_path / "s", ["a", "b", "c", "d", "e"]))
    with pytest.raises(DataError, match=what) as caught:
        archives.unpack(archive, tmp_path / "out", context=context(workspace), limits=limits)
    assert [fault.code for fault in caught.value.faults] == ["archive_too_large"]


def test_fault_51_a_header_that_fills_the_memory(tmp_path, workspace):
    """A pax header of 3 GiB: tarfile alone would read it whole."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 3 << 30
    archive = tmp_path / "s.tar"
    archive.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    assert "header of more than 1 MiB" in str(refused(workspace, archive))


def test_fault_51_an_encrypted_zip(tmp_path, workspace):
    archive = zipped(tmp_path / "s.zip", ("secret.txt", b"x" * 100))
    data = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    archive.write_bytes(data)
    assert [(fault.code, fault.file) for fault in refused(workspace, archive).faults] == [("archive_encrypted", "secret.txt")]


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.7, 0.999])
@pytest.mark.parametrize("kind", FORMATS)
def test_fault_51_cut_archives(tmp_path, workspace, kind, share):
    archive = pack(tmp_path / f"s.{kind}", decathlon(tmp_path / "s", ["a", "b", "c"]))
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * share)])
    if kind == "tar" and share == 0.999:  # only the padding after the end mark is cut
        assert register_dataset(workspace, archive)["added"] == 3
        return
    assert [fault.code for fault in refused(workspace, archive).faults] == ["archive_damaged"]


def test_fault_51_a_tar_that_is_cut_just_between_two_files(tmp_path, workspace):
    """Nothing in the file itself says that there was more; only the end mark is missing."""
    archive = pack(tmp_path / "s.tar", decathlon(tmp_path / "s", ["a", "b", "c"]))
    with tarfile.open(archive) as packed:
        cuts = [member.offset for member in packed.getmembers()[1:]]
    data = archive.read_bytes()
    for cut in cuts:
        archive.write_bytes(data[:cut])
        error = refused(workspace, archive)
        assert [fault.code for fault in error.faults] == ["archive_damaged"]
        assert "ends early" in str(error)


@pytest.mark.parametrize("kind", FORMATS)
def test_fault_51_any_flipped_bit_is_noticed_or_harmless(tmp_path, workspace, kind):
    """Whatever is damaged: refused by name, or the dataset is what it was."""
    source = decathlon(tmp_path / "s", ["a", "b"])
    archive = pack(tmp_path / f"s.{kind}", source)
    data = archive.read_bytes()
    whole = {path.relative_to(source): path.read_bytes() for path in source.rglob("*") if path.is_file()}
    found = []
    for number in range(0, len(data), max(1, len(data) // 120)):
        archive.write_bytes(data[:number] + bytes([data[number] ^ 0x20]) + data[number + 1 :])
        out = tmp_path / "out"
        try:
            top = archives.unpack(archive, out, context=context(workspace))
            found.append({path.relative_to(top): path.read_bytes() for path in top.rglob("*") if path.is_file()})
        except DataError as error:
            found.append({fault.code for fault in error.faults})
        finally:
            shutil.rmtree(out, ignore_errors=True)
    noticed = [codes for codes in found if isinstance(codes, set)]
    assert set().union(*noticed) <= {"archive_damaged", "archive_unsafe", "archive_encrypted", "archive_too_large"}
    unnoticed = [content for content in found if isinstance(content, dict)]
    if kind == "tar":  # has no checksum of its contents: the check of each image sees to that
        assert all(content.keys() == whole.keys() for content in unnoticed)
    elif kind != "zip":  # where names and attributes have none
        assert all(content == whole for content in unnoticed)
    assert len(noticed) >= (5 if kind == "tar" else 80)


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"PK\x03\x04", b"\x1f\x8b", b"\x1f\x8b\x08\0" + b"x" * 50, b"x" * 5000, b"PK\x05\x06" + b"\xff" * 18]
)
@pytest.mark.parametrize("kind", FORMATS)
def test_fault_51_what_is_no_archive(tmp_path, workspace, kind, content):
    (tmp_path / f"s.{kind}").write_bytes(content)
    assert [fault.code for fault in refused(workspace, tmp_path / f"s.{kind}").faults] == ["archive_damaged"]


def test_fault_51_archives_in_an_archive_are_not_followed(tmp_path, workspace):
    inner = pack(tmp_path / "Task04.zip", decathlon(tmp_path / "s", ["a"]))
    outer = zipped(tmp_path / "outer.zip", ("all/Task04.zip", inner.read_bytes()))
    assert [(fault.code, fault.file) for fault in refused(workspace, outer).faults] == [("archive_nested", "all/Task04.zip")]


def test_fault_39_an_archive_that_changes_while_it_is_unpacked(tmp_path, workspace):
    archive = pack(tmp_path / "s.tar", decathlon(tmp_path / "s", [f"c{n}" for n in range(20)]))

    class Grow(threading.Event):
        def is_set(self) -> bool:
            with open(archive, "ab") as file:
                file.write(b"x")
            return False

    surroundings = context(workspace)
    surroundings.stop = Grow()
    with pytest.raises(DataError) as caught:
        register.run(RegisterParams(dataset_id=4, name="Small", source=str(archive)), surroundings)
    assert [fault.code for fault in caught.value.faults] == ["source_changed"]
    assert hidden(workspace) == []


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_fault_15_no_room_to_unpack(tmp_path, workspace, kind):
    source = decathlon(tmp_path / "s", ["a", "b"])
    (source / "big.bin").write_bytes(os.urandom(3 << 20))
    archive = pack(tmp_path / f"s.{kind}", source)
    (tmp_path / "disk").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path / "disk")]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        tight = type(workspace)(**{**workspace.to_json(), "raw": str(tmp_path / "disk")})
        with pytest.raises(DiskFull, match="make room and run again"):
            register_dataset(tight, archive)
        assert hidden(tight) == []
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)
