"""Keyed ids: the same for the same study, closed files, damage and clashes named."""

import json
import os
from pathlib import Path

import pytest

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.dicom.identity import Identity, Person


def person(identity: Identity, study: str, patient: str = "p") -> Person:
    return Person(case=identity.case(study), group=identity.group(patient, study), patient=patient, study=study, series=("1.2",))


def test_ids_are_stable_with_the_key_and_unknown_without_it(tmp_path: Path) -> None:
    first, again, other = Identity(tmp_path / "a"), Identity(tmp_path / "a"), Identity(tmp_path / "b")
    assert first.case("1.2.3") == again.case("1.2.3") != other.case("1.2.3")
    assert len(first.case("1.2.3")) == 13
    assert first.case("1.2.3") not in (first.case("1.2.4"), first.case("1.2.3", "1"), "c" + first.group("1.2.3", "")[1:])


def test_a_patient_is_one_group_with_and_without_an_issuer_and_nobody_is_a_group_a_study(tmp_path: Path) -> None:
    identity = Identity(tmp_path / "a")
    assert identity.group("7", "s1") == identity.group("7^^^hospital", "s2") != identity.group("8", "s1")
    assert identity.group("", "s1") != identity.group("", "s2")


def test_what_identifies_is_for_its_owner_alone(tmp_path: Path) -> None:
    os.umask(old := os.umask(0))
    try:
        os.umask(0)
        identity = Identity(tmp_path / "a")
        path = identity.remember("D", [person(identity, "1.2.3")])
        note = identity.note_files("D", {3: Path("/x/CANARY")})
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    assert note is not None
    assert {item.stat().st_mode & 0o777 for item in (path, note, tmp_path / "a" / "site.key")} == {0o600}
    assert json.loads(note.read_text()) == {"3": "/x/CANARY"}
    assert identity.note_files("D", {}) is None
    assert not note.exists()


def test_the_mapping_grows_and_leads_back(tmp_path: Path) -> None:
    identity = Identity(tmp_path / "a")
    identity.remember("D", [person(identity, "1.2.3")])
    identity.remember("D", [person(identity, "1.2.4", "q")])
    found = Identity(tmp_path / "a").mapping("D")
    assert {entry.study: entry.patient for entry in found.values()} == {"1.2.3": "p", "1.2.4": "q"}
    assert identity.mapping("Other") == {}


@pytest.mark.parametrize("name", ["", "site.key"])
def test_open_files_are_refused(tmp_path: Path, name: str) -> None:
    Identity(tmp_path / "a")
    (tmp_path / "a" / name).chmod(0o755)
    with pytest.raises(ConfigError, match="open to others"):
        Identity(tmp_path / "a")


@pytest.mark.parametrize("content", ["", "12", "zz" * 32])
def test_a_damaged_key_is_not_replaced_in_silence(tmp_path: Path, content: str) -> None:
    Identity(tmp_path / "a")
    (tmp_path / "a" / "site.key").write_text(content)
    with pytest.raises(ConfigError, match="damaged"):
        Identity(tmp_path / "a")


def test_clashing_ids_are_named(tmp_path: Path) -> None:
    identity = Identity(tmp_path / "a")
    one = person(identity, "1.2.3")
    identity.remember("D", [one])
    with pytest.raises(ConfigError, match="two studies share"):
        identity.remember("D", [Person(case=one.case, group=one.group, patient="p", study="9.9", series=())])
    with pytest.raises(ConfigError, match="two patients share"):
        identity.remember("D", [Person(case="c0", group=one.group, patient="other", study="9.9", series=())])
    (tmp_path / "a" / "D.jsonl").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        identity.mapping("D")
