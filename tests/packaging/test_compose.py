"""Compose: what docker/compose*.yaml promise, as docker-compose itself reads them, and the scripts of their images."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import socketserver
import stat
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from nnunet_jobs.__main__ import build_parser

DOCKER = Path(__file__).resolve().parents[2] / "docker"
DOCS = DOCKER.parent / "docs" / "how-to" / "celery.md"
# Sets of files to the settings that have no default, so that the defaults are what is tested.
FILES: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "one host": (("compose.yaml",), {}),
    "tls": (("compose.yaml", "compose.tls.yaml"), {}),
    "several hosts": (("compose.yaml", "compose.tls.yaml", "compose.hosts.yaml"), {"NNUNET_HOSTS_LISTEN": "192.0.2.1"}),
    "predictors": (("compose.yaml", "compose.predictors.yaml"), {}),
    "predictors on GPUs": (("compose.yaml", "compose.predictors.yaml", "compose.predictors-gpu.yaml"), {}),
    "another host's worker": (("compose.yaml", "compose.worker.yaml"), {"NNUNET_API": "https://front.example:8444/execution/"}),
}
# What may stand in an environment although its name sounds secret: where a secret is, not what it is.
PLACES = re.compile(r"cat /run/secrets/[a-z_.]+|/run/secrets/[a-z_.]+|/tmp/ui_passwords.json|admin:admin")


def compose_command() -> list[str]:
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    if shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        return ["docker", "compose"]
    pytest.skip("neither docker-compose nor docker compose is installed")


def run_compose(files: tuple[str, ...], settings: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NNUNET_", "COMPOSE_", "DOCKER_"))}
    command = [*compose_command(), *(part for file in files for part in ("-f", str(DOCKER / file))), *arguments]
    return subprocess.run(command, env=kept | settings, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def configs() -> dict[str, dict[str, Any]]:
    """Every set of files as Compose understands it."""
    found = {}
    for name, (files, settings) in FILES.items():
        done = run_compose(files, settings | {"COMPOSE_PROFILES": "gpu"}, "config")
        assert done.returncode == 0, f"{name}: {done.stderr}"
        assert "not set" not in done.stderr, f"{name}: {done.stderr}"
        found[name] = yaml.safe_load(done.stdout)
    return found


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docker_{name}", DOCKER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_part_of_airflow_is_there(configs: dict[str, dict[str, Any]]) -> None:
    airflow = {"api-server", "scheduler", "dag-processor", "triggerer", "cpu-worker", "gpu-worker", "init"}
    assert set(configs["one host"]["services"]) == airflow | {"postgres", "redis", "nginx"}


def test_every_service_is_confined_checked_and_restarted(configs: dict[str, dict[str, Any]]) -> None:
    for files, found in configs.items():
        for name, service in found["services"].items():
            where = f"{name} ({files})"
            assert service["user"].split(":")[0] not in ("", "0", "root"), where
            assert service["read_only"] is True, where
            assert service["cap_drop"] == ["ALL"], where
            assert service["security_opt"] == ["no-new-privileges:true"], where
            assert service["pids_limit"] > 0, where
            assert "privileged" not in service, where
            if name == "init":  # ends by itself
                assert (service["restart"], service["healthcheck"]) == ("no", {"test": ["NONE"]})
            else:
                assert service["restart"] == "unless-stopped", where
                assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL"), where


def test_only_nginx_can_be_reached_and_by_default_from_this_host_alone(configs: dict[str, dict[str, Any]]) -> None:
    internal = {name for name, network in configs["one host"]["networks"].items() if network and network.get("internal")}
    assert internal == {"api", "broker", "database"}
    for files, found in configs.items():
        published = {name: service["ports"] for name, service in found["services"].items() if service.get("ports")}
        assert set(published) == {"nginx"}, files
        addresses = {address(port) for port in published["nginx"]}
        assert addresses == ({"127.0.0.1", "192.0.2.1"} if files == "several hosts" else {"127.0.0.1"})
        assert all(service.get("network_mode", "none") == "none" for service in found["services"].values())


def address(port: str | dict[str, Any]) -> str:
    """Compose 1 writes ports short, Compose 2 long."""
    return str(port["host_ip"]) if isinstance(port, dict) else port.split(":")[0]


def test_workers_see_neither_the_database_nor_its_key_nor_an_engine(configs: dict[str, dict[str, Any]]) -> None:
    for found in configs.values():
        for name in ("cpu-worker", "gpu-worker"):
            service = found["services"][name]
            assert "database" not in service["networks"]
            assert {secret["source"] for secret in service["secrets"]} <= {"broker_url", "result_backend", "tls_ca"}
            assert not [volume for volume in service["volumes"] if "docker.sock" in str(volume)]


def test_predictors_have_no_network_and_change_no_model(configs: dict[str, dict[str, Any]]) -> None:
    for name in ("predictors", "predictors on GPUs"):
        services = configs[name]["services"]
        for server in ("predictor-1", "predictor-2", "predictors"):
            service = services[server]
            assert (service["network_mode"], service.get("networks"), service.get("secrets")) == ("none", None, None)
            volumes = {mount(volume)[0]: mount(volume)[1] for volume in service["volumes"]}
            assert volumes["/run/nnunet/predictors"]
            assert volumes.get("/data/nnunet", False) is False, "its models are read, never written"
        for server in ("predictor-1", "predictor-2"):
            command = [*services[server]["entrypoint"], *services[server]["command"]]
            listening = command[command.index("--uds") + 1]
            assert f"server unix:{listening} " in (DOCKER / "nginx" / "predictors.conf").read_text()
            assert listening in services[server]["healthcheck"]["test"]
            parsed = build_parser().parse_args(command[command.index("serve") :])
            grace = re.fullmatch(r"1m30s|90s", services[server]["stop_grace_period"])
            assert grace, services[server]["stop_grace_period"]
            assert parsed.drain_s < 90
            gpus = services[server].get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices")
            assert bool(gpus) is (name == "predictors on GPUs")
        assert "/run/nnunet/predictors" in {mount(volume)[0] for volume in services["cpu-worker"]["volumes"]}


def mount(volume: str | dict[str, Any]) -> tuple[str, bool]:
    """Where a volume is in the container and whether it may be written; Compose 1 writes volumes short, Compose 2 long."""
    if isinstance(volume, dict):
        return str(volume["target"]), not volume.get("read_only", False)
    _source, target, *mode = volume.split(":")
    return target, "ro" not in mode


def test_every_secret_comes_from_a_file_and_none_has_a_default(configs: dict[str, dict[str, Any]]) -> None:
    for found in configs.values():
        assert all(set(secret) <= {"file", "name"} and secret["file"] for secret in found["secrets"].values())
        declared = set(found["secrets"])
        for name, service in found["services"].items():
            assert {secret["source"] for secret in service.get("secrets", [])} <= declared
            for option, value in (service.get("environment") or {}).items():
                if re.search(r"PASSWORD|SECRET|KEY|CONN|BROKER|RESULT_BACKEND|TOKEN|USERS", option) and "CONNECTIONS" not in option:
                    assert option.startswith("AIRFLOW__CELERY_BROKER_TRANSPORT") or PLACES.fullmatch(str(value)), (
                        f"{name}: {option}={value}"
                    )
                assert not re.search(r"://[^/]*:[^/]*@", str(value)), f"{name}: {option} holds a password"


def test_every_secret_that_compose_reads_is_made_and_kept(tmp_path: Path, configs: dict[str, dict[str, Any]]) -> None:
    folder = tmp_path / "secrets"
    command = [sys.executable, str(DOCKER / "make_secrets.py"), "--folder", str(folder), "--users", "admin:admin,ward:viewer"]
    first = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    made = {path.name: path.read_text() for path in folder.iterdir()}
    assert {Path(secret["file"]).name for secret in configs["one host"]["secrets"].values()} == set(made)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    passwords = json.loads(made["ui_passwords.json"])
    assert set(passwords) == {"admin", "ward"}
    password = re.fullmatch(r"redis://airflow:(.+)@redis:6379/0", made["broker_url"])
    assert password is not None
    assert password[1] not in made["redis.acl"]
    assert "user default off" in made["redis.acl"]
    for text in (*made.values(), *passwords.values(), password[1]):
        assert text == "{}" or text not in first, "a secret was printed"
    again = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "nothing to make" in again
    assert {path.name: path.read_text() for path in folder.iterdir()} == made
    other = tmp_path / "other"
    subprocess.run([*command[:3], str(other)], capture_output=True, check=True)
    same = {name for name, text in made.items() if (other / name).read_text() == text}
    assert same == {"connections.json"}


def test_half_of_a_pair_of_secrets_is_not_made_anew(tmp_path: Path) -> None:
    command = [sys.executable, str(DOCKER / "make_secrets.py"), "--folder", str(tmp_path)]
    subprocess.run(command, capture_output=True, check=True)
    (tmp_path / "sql_alchemy_conn").unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "sql_alchemy_conn missing, but postgres_password there" in done.stderr
    assert not (tmp_path / "sql_alchemy_conn").exists()


def test_another_hosts_worker_gets_three_files_and_speaks_tls(tmp_path: Path, configs: dict[str, dict[str, Any]]) -> None:
    command = [sys.executable, str(DOCKER / "make_secrets.py"), "--folder", str(tmp_path), "--front", "nnunet.example"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "tls_ca.crt: missing" in refused.stderr
    (tmp_path / "tls_ca.crt").write_text("certificate")
    subprocess.run(command, capture_output=True, check=True)
    worker = tmp_path / "worker"
    found = configs["another host's worker"]
    needed = {Path(found["secrets"][secret["source"]]["file"]).name for secret in found["services"]["gpu-worker"]["secrets"]}
    assert {path.name for path in worker.iterdir()} == needed
    for name in ("broker_url", "result_backend"):
        assert re.fullmatch(r"rediss://airflow:.+@nnunet\.example:6380/[01]\?ssl_cert_reqs=required&.+", (worker / name).read_text())


@pytest.mark.parametrize("users", ["admin", "admin:king", "a b:admin", ""])
def test_users_without_a_known_role_are_refused(tmp_path: Path, users: str) -> None:
    command = [sys.executable, str(DOCKER / "make_secrets.py"), "--folder", str(tmp_path / "s"), "--users", users]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "must be name:role" in done.stderr
    assert not (tmp_path / "s").exists()


def test_every_queue_is_explained(configs: dict[str, dict[str, Any]]) -> None:
    text = DOCS.read_text()
    for name in ("cpu-worker", "gpu-worker"):
        command = configs["one host"]["services"][name]["command"]
        queues = command[command.index("--queues") + 1].split(",")
        assert len(queues) >= 2
        for queue in queues:
            assert f"`{queue}`" in text, f"docs/how-to/celery.md says nothing of queue {queue}"


def test_every_setting_is_explained() -> None:
    settings = {name for path in DOCKER.glob("compose*.yaml") for name in re.findall(r"\$\{(NNUNET_[A-Z_]+)", path.read_text())}
    text = (DOCKER / "compose.env.example").read_text()
    assert settings == set(re.findall(r"^#?\s?(NNUNET_[A-Z_]+)=", text, re.MULTILINE))


def test_several_hosts_without_an_address_is_refused_with_the_mend() -> None:
    done = run_compose(FILES["several hosts"][0], {}, "config")
    assert done.returncode != 0
    assert "NNUNET_HOSTS_LISTEN" in done.stderr
    assert "the address of this host" in done.stderr


# --- the container's first program --------------------------------------------------------------------------------------------------
def enter(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    full = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run(
        [sys.executable, str(DOCKER / "entrypoint.py"), *command], env=full, capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_a_missing_or_empty_secret_stops_the_container_and_names_the_mend(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "fernet_key"
    if content is not None:
        path.write_text(content)
    done = enter({"AIRFLOW__CORE__FERNET_KEY_CMD": f"cat {path}"}, "echo", "started")
    assert done.returncode == 1
    assert str(path) in done.stderr
    assert "AIRFLOW__CORE__FERNET_KEY" in done.stderr
    assert "make_secrets.py" in done.stderr
    assert "started" not in done.stdout


def passwords_environment(tmp_path: Path, passwords: str, users: str) -> dict[str, str]:
    source = tmp_path / "ui_passwords.json"
    source.write_text(passwords)
    return {
        "NNUNET_UI_PASSWORDS": str(source),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": users,
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(tmp_path / "copy.json"),
    }


def test_the_command_takes_over_with_the_passwords_in_a_file_of_its_own(tmp_path: Path) -> None:
    environment = passwords_environment(tmp_path, '{"admin": "correct horse", "gone": "staple battery"}', "admin:admin")
    done = enter(environment, "echo", "started")
    assert done.stdout == "started\n"
    copy = tmp_path / "copy.json"
    assert json.loads(copy.read_text()) == {"admin": "correct horse"}
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("passwords", "users"),
    [
        ("{}", "admin:admin"),
        ('{"admin": "short"}', "admin:admin"),
        ('{"admin": "long enough it is"}', "admin:admin,ward:viewer"),
        ("[", "a:user"),
    ],
)
def test_a_user_without_a_decent_password_is_refused(tmp_path: Path, passwords: str, users: str) -> None:
    done = enter(passwords_environment(tmp_path, passwords, users), "echo", "started")
    assert done.returncode == 1
    assert "ui_passwords.json" in done.stderr
    assert "long enough" not in done.stderr
    assert not (tmp_path / "copy.json").exists()


def test_pools_of_all_hosts_get_the_slots_that_were_named() -> None:
    init = script("init")
    text = (DOCKER.parent / "include" / "pools.json").read_text()
    before, after = json.loads(text), json.loads(init.pools(text, "6"))
    assert after["gpu"] == before["gpu"] | {"slots": 6}
    assert {name: pool for name, pool in after.items() if name != "gpu"} == {name: pool for name, pool in before.items() if name != "gpu"}
    with pytest.raises(SystemExit, match="NNUNET_GPU_SLOTS='auto'"):
        init.pools(text, "auto")


# --- health -------------------------------------------------------------------------------------------------------------------------
class Health(BaseHTTPRequestHandler):
    """Airflow's health page, with a triggerer that stopped."""

    def do_GET(self) -> None:
        body = json.dumps({"scheduler": {"status": "healthy"}, "triggerer": {"status": "unhealthy", "latest_triggerer_heartbeat": "noon"}})
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_health_is_what_airflow_says_of_the_component() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"

        def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
            environment = {"PATH": os.environ["PATH"], "http_proxy": "http://127.0.0.1:1"}
            command = [sys.executable, str(DOCKER / "healthcheck.py"), *arguments]
            return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)

        assert ask(f"{url}/health").returncode == 0
        assert ask(f"{url}/health", "scheduler").returncode == 0
        sick = ask(f"{url}/health", "triggerer")
        assert (sick.returncode, "triggerer is unhealthy, last heartbeat noon" in sick.stderr) == (1, True)
        assert ask(f"{url}/health", "dag_processor").returncode == 1
        assert ask(f"{url}/elsewhere").returncode == 1
        server.shutdown()
    gone = ask(f"{url}/health")
    assert gone.returncode == 1
    assert "refused" in gone.stderr


def test_health_of_a_predictor_is_asked_on_its_socket(tmp_path: Path) -> None:
    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/readyz" else 503)
            self.end_headers()
            self.wfile.write(b"loading")

        def log_message(self, format: str, *args: object) -> None:
            pass

    path = tmp_path / "server.sock"

    def ask(page: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(DOCKER / "healthcheck.py"), "--socket", str(path), page]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    assert ask("/readyz").returncode == 1
    with socketserver.UnixStreamServer(str(path), Ready) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert ask("/readyz").returncode == 0
        sick = ask("/elsewhere")
        assert (sick.returncode, "says 503 loading" in sick.stderr) == (1, True)
        server.shutdown()
    gone = ask("/readyz")
    assert (gone.returncode, "refused" in gone.stderr) == (1, True)
