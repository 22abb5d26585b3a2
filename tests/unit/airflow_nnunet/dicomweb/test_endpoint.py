"""What a connection may say, what it may not, and that none of it leaks; certificates are always checked."""

from __future__ import annotations

import datetime
import ipaddress
import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Connection

from airflow_nnunet import dicomweb
from airflow_nnunet.dicomweb import DicomWebHook
from airflow_nnunet.dicomweb.endpoint import Endpoint
from airflow_nnunet.dicomweb.model import StudyQuery, checked_uid, matches_pattern
from airflow_nnunet.jobs.exceptions import ArchiveRefused, ArchiveUnavailable, InvalidConfig
from airflow_nnunet.jobs.retry import NnunetRetryPolicy
from airflow_nnunet.provider_info import DICOMWEB_FIELDS, get_provider_info
from nnunet_jobs.contract.failure import ConfigError
from support.airflow import PROJECT, environment
from support.airflow import run as run_python
from support.orthanc import Orthanc
from support.proxy import Proxy

SECRET = "hush-hush-42"


def endpoint(extra: Any = None, **fields: Any) -> Endpoint:
    values = {"conn_id": "pacs", "conn_type": "dicomweb", "host": "pacs.example", **fields}
    return Endpoint.from_connection(Connection(**values, extra=extra if isinstance(extra, str) else json.dumps(extra or {})))


def test_https_and_a_checked_certificate_are_the_default() -> None:
    found = endpoint(login="u", password=SECRET)
    assert (found.url, found.verify, found.in_the_clear) == ("https://pacs.example/dicom-web", True, False)
    assert endpoint(schema="http", login="u", password=SECRET).in_the_clear
    assert not endpoint(schema="http", host="127.0.0.1", login="u", password=SECRET).in_the_clear


def test_every_field_of_the_form_is_read(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("")
    extra = {
        "base_path": "/dcm4chee-arc/aets/MAIN/rs/", "qido_prefix": "q", "wado_prefix": "w", "stow_prefix": "s", "verify": str(bundle),
        "timeout_s": "5", "tries": "2", "token": SECRET,
    }  # fmt: skip
    assert set(extra) == set(DICOMWEB_FIELDS)
    found = endpoint(extra, port=8443)
    assert found.url == "https://pacs.example:8443/dcm4chee-arc/aets/MAIN/rs"
    assert (found.qido_prefix, found.wado_prefix, found.stow_prefix) == ("q", "w", "s")
    assert (found.verify, found.timeout_s, found.tries, found.token) == (str(bundle), 5.0, 2, SECRET)
    assert endpoint(dict.fromkeys(DICOMWEB_FIELDS, "")) == endpoint(), "the form leaves blanks"


@pytest.mark.parametrize(
    ("extra", "fields", "words"),
    [
        (
            {"verify": False},
            {},
            "verify=False: must be true or the absolute path of a CA bundle. Checking certificates cannot be turned off",
        ),
        ({"verify": "false"}, {}, "verify='false'"),
        ({"verify": 0}, {}, "verify=0"),
        ({"verify": "ca.pem"}, {}, "absolute path"),
        ({"verify": "/no/such/ca.pem"}, {}, "no such file"),
        ({"verifi": True}, {}, "unknown field 'verifi'; did you mean 'verify'"),
        ({"insecure": True}, {}, "unknown field 'insecure'"),
        ({"timeout_s": "soon"}, {}, "timeout_s='soon'"),
        ({"timeout_s": float("inf")}, {}, "timeout_s=inf"),
        ({"tries": 0}, {}, "tries=0"),
        ({"base_path": "a/../b"}, {}, "base_path"),
        ({"base_path": "x?y=1"}, {}, "base_path"),
        ({"token": SECRET + "\r\nX: y"}, {}, "token: must be a printable ASCII string"),
        ({"token": SECRET}, {"login": "u"}, "a login and a token"),
        ("{" + SECRET, {}, "extra: must be a JSON object"),
        ({}, {"host": "https://pacs.example"}, "put http or https into schema"),
        ({}, {"host": None}, "must be a bare host name"),
        ({}, {"schema": "ftp"}, "schema='ftp'"),
    ],
)
def test_what_cannot_be_used_is_named_with_the_mend(extra: Any, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        endpoint(extra, **fields)
    assert "connection 'pacs'" in str(caught.value)
    assert words in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_credential_is_in_no_printed_form() -> None:
    for found in (endpoint(login="u", password=SECRET), endpoint({"token": SECRET})):
        assert SECRET not in repr(found)
        assert SECRET not in found.key


def test_a_missing_connection_is_named_with_the_mend() -> None:
    with pytest.raises(ArchiveUnavailable, match=r"connection 'no_such_pacs': does not exist.*add one of type dicomweb") as caught:
        DicomWebHook("no_such_pacs").find_studies()
    # Airflow's SDK says "not found" for every error of its API too, so failing for good would turn a hiccup into a lost night.
    assert NnunetRetryPolicy().evaluate(caught.value, 1, 3).action.name == "RETRY"
    assert not DicomWebHook("no_such_pacs").test_connection()[0]


def certificate(folder: Path) -> Path:
    """A self-signed certificate of 127.0.0.1 with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    (folder / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return path


def test_an_unknown_certificate_is_refused_and_a_named_bundle_accepted(
    orthanc: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy(orthanc.url, certificate=certificate(tmp_path)) as proxy:

        def connect(**extra: Any) -> DicomWebHook:
            fields = json.loads(orthanc.connection(tries=1, **extra)) | {"port": proxy.port, "schema": "https"}
            monkeypatch.setenv("AIRFLOW_CONN_TLS", json.dumps(fields))
            return DicomWebHook("tls")

        with pytest.raises(ArchiveRefused, match="certificate is not trusted; set verify"):
            connect().find_studies()
        assert proxy.paths == [], "no request, so no credential, went to a server that could be anybody"
        trusting = connect(verify=str(tmp_path / "ca.pem"))
        assert trusting.find_studies() == []
        import certifi

        monkeypatch.setenv("REQUESTS_CA_BUNDLE", certifi.where())
        assert trusting.find_studies() == [], "the connection's own bundle counts, not the environment's"


@pytest.mark.parametrize("uid", ["", "1.2/../..", "1.2?x=1", "1." * 40, "abc", ".1"])
def test_what_is_no_uid_never_becomes_a_part_of_a_url(uid: str) -> None:
    with pytest.raises(ConfigError, match="must be a DICOM UID"):
        checked_uid(uid, field="study")


def test_wildcards_are_dicoms() -> None:
    assert matches_pattern("T1 POST ", "t1*")
    assert matches_pattern("a[1]", "a[1]")
    assert not matches_pattern("a1", "a[1]")
    assert not matches_pattern("T1 post", "T1")
    assert matches_pattern("anything", None)


def test_a_query_survives_json() -> None:
    query = StudyQuery(date_from="2024-01-01", date_to="2024-02-01", modality="MR", description="a*")  # type: ignore[arg-type]
    assert StudyQuery.from_json(json.loads(json.dumps(query.to_json()))) == query
    assert query.dates == "20240101-20240201"
    with pytest.raises(InvalidConfig):
        DicomWebHook("any").retrieve_study("1.2", Path("/"), modality="mr")


def test_the_exported_names_are_all_there_and_bring_nothing_heavy(tmp_path: Path) -> None:
    program = """
        import sys
        import airflow.sdk
        before = {name.partition(".")[0] for name in sys.modules}
        from airflow_nnunet import dicomweb
        for name in dicomweb.__all__:
            assert getattr(dicomweb, name).__name__ == name
        new = {name.partition(".")[0] for name in sys.modules} - before
        print(sorted(new & {"pydicom", "numpy", "dicomweb_client", "requests", "tenacity", "highdicom"}))
    """
    done = run_python(["-c", textwrap.dedent(program)], environment(tmp_path))
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = dicomweb.no_such_name


def test_airflow_knows_the_connection_type_and_its_form(home: Path) -> None:
    """In a process of its own: the package's entry point may not be installed here, so its provider info is read directly."""
    (kind,) = [item for item in get_provider_info()["connection-types"] if item["connection-type"] == "dicomweb"]
    module, _, name = kind["hook-class-name"].rpartition(".")
    hook = getattr(__import__(module, fromlist=[name]), name)
    assert (hook.conn_type, hook.hook_name) == ("dicomweb", kind["hook-name"])
    assert kind["conn-fields"]["token"]["schema"]["format"] == "password"


def test_the_example_connections_hold_no_secret_and_can_be_imported(home: Path) -> None:
    path = PROJECT / "include" / "connections.example.json"
    for conn_id, fields in json.loads(path.read_text()).items():
        assert fields["password"] == "", conn_id
        extra = {name: value for name, value in fields.get("extra", {}).items() if name != "verify"}  # the bundle is the hospital's
        assert endpoint(extra, **{name: value for name, value in fields.items() if name not in ("conn_type", "extra", "description")})
    done = run_python(["-m", "airflow", "connections", "import", path], environment(home))
    assert done.returncode == 0, done.stderr[-2000:]


def test_doctor_asks_every_archive_and_looks_for_their_pool(orthanc: Orthanc, home: Path, tmp_path: Path) -> None:
    good = json.loads(orthanc.connection())
    connections = {"good": good, "stale": {**good, "password": "old-" + SECRET}}
    for fields in connections.values():
        fields.pop("extra")
    (tmp_path / "connections.json").write_text(json.dumps(connections))
    env = environment(home)
    done = run_python(["-m", "airflow", "connections", "import", tmp_path / "connections.json"], env)
    assert done.returncode == 0, done.stderr[-2000:]
    found = run_python(["-m", "airflow_nnunet", "doctor"], env).stdout
    assert f"ok    archive good: {orthanc.url}/dicom-web answers" in found
    assert "warn  archive stale: config: connection 'stale': a query: the archive answers 401" in found
    assert "warn  pool pacs: missing, retrieval would wait forever" in found
    assert SECRET not in found
    assert orthanc.password not in found
