"""The wheel with ``[local]`` in somebody's own Airflow: nnU-Net's packages lie beside Airflow's, and every command still runs.

batchgenerators brings unittest2, which brings a module ``argparse`` of 2010. On PYTHONPATH it would go before the standard library's.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from devtools.testbed.data import decathlon
from support.installed import build_wheel, environment, listing, run

STOCK = ["apache-airflow>=3.3,<4"]
BUNDLES = json.dumps(
    [
        {"name": "dags-folder", "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle", "kwargs": {}},
        {"name": "nnunet", "classpath": "airflow_nnunet.dag_bundle.NnunetDagBundle", "kwargs": {}},
    ]
)


class Site:
    """A new user's Airflow."""

    def __init__(self, folder: Path) -> None:
        wheel = build_wheel(folder / "dist")
        self.python = environment(folder / "venv", *STOCK, f"airflow-provider-nnunet[local] @ {wheel.as_uri()}")
        self.home = folder / "home"
        self.folder = folder
        self.more = {"AIRFLOW__NNUNET__INPUT_ROOTS": str(folder / "incoming"), "AIRFLOW__NNUNET__CPU_SLOTS": "3"}

    def airflow(self, *words: str, check: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
        return run([self.python, "-m", "airflow", *words], home=self.home, check=check, more=self.more | more)

    def jobs(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run([self.python, "-m", "nnunet_jobs", *words], home=self.home, check=check)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    made = Site(tmp_path_factory.mktemp("local"))
    made.airflow("db", "migrate")
    return made


def test_the_trap_is_there(site: Site) -> None:
    (shadow,) = (site.folder / "venv").glob("lib/python*/site-packages/argparse.py")
    assert "Action" in shadow.read_text()


def test_sync_pools_finds_the_packages_own_pools(site: Site) -> None:
    done = site.airflow("nnunet", "sync-pools")
    assert {"pool gpu: 3 slots", "pool pacs: 2 slots", "pool predictions: 16 slots"} <= set(done.stdout.splitlines())
    assert {"gpu", "pacs", "predictions"} <= {pool["pool"] for pool in listing(site.python, site.home, "pools", "list")}


def test_the_doctor_finds_nothing_that_blocks(site: Site) -> None:
    (site.folder / "incoming").mkdir(exist_ok=True)
    site.airflow("nnunet", "sync-pools")
    done = site.airflow("nnunet", "doctor")
    assert "FAIL" not in done.stdout
    assert "nnunetv2" in done.stdout


def test_a_dataset_is_validated_registered_listed_and_withdrawn_from(site: Site) -> None:
    source = decathlon(site.folder / "incoming" / "small", ["a", "b", "c", "d", "e"])
    validated = site.jobs("validate", str(source), "--json")
    assert json.loads(validated.stdout)["faults"] == []
    dag = site.home / "dags" / "register.py"
    dag.parent.mkdir(exist_ok=True)
    dag.write_text(REGISTER)
    done = run([site.python, dag], home=site.home, more=site.more | {"SOURCE": str(source)})
    assert "state success" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads(site.airflow("nnunet", "dataset", "list", "--json").stdout)
    assert [row["dataset"] for row in rows] == ["Dataset004_Small"]
    history = json.loads(site.airflow("nnunet", "dataset", "log", "4", "--json").stdout)["history"]
    case = history[0]["cases"]["added"][0]
    withdrawn = site.airflow("nnunet", "dataset", "withdraw", "4", "--case", case, "--json")
    assert json.loads(withdrawn.stdout)["cases"] == [case]
    usage = json.loads(site.airflow("nnunet", "usage", "--json").stdout)
    assert [row["dataset"] for row in usage["rows"]] == ["Dataset004_Small"]


REGISTER = """
import os
from airflow.sdk import DAG
from airflow_nnunet.operators import RegisterDatasetOperator

with DAG("new_user", schedule=None) as dag:
    RegisterDatasetOperator(task_id="register", dataset_id=4, name="Small", source=os.environ["SOURCE"], deferrable=False)

if __name__ == "__main__":
    print("state", dag.test().state)
"""


def test_init_writes_what_a_site_edits_and_a_dataset_file_becomes_a_dag(site: Site, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    first = run([site.python, "-m", "airflow", "nnunet", "init", home], home=home)
    for name in ("include/pools.json", "include/datasets/hippocampus.yaml.example", "airflow.cfg.template", "dags/nnunet_training.py"):
        assert f"written  {home}/{name}" in first.stdout
        assert (home / name).is_file()
    (home / "include/pools.json").write_text("{}")
    again = run([site.python, "-m", "airflow", "nnunet", "init"], home=home)
    assert f"kept     {home}/include/pools.json" in again.stdout
    assert (home / "include/pools.json").read_text() == "{}"
    (home / "include/datasets/night.yaml").write_text("dataset: {id: 4, name: Night, source: /data/incoming/night}\n")
    run([site.python, "-m", "airflow", "db", "migrate"], home=home)
    run([site.python, "-m", "airflow", "dags", "reserialize"], home=home)
    assert listing(site.python, home, "dags", "list-import-errors") == []
    dags = {dag["dag_id"] for dag in listing(site.python, home, "dags", "list")}
    packaged = {"nnunet_models", "nnunet_prediction", "nnunet_predictions", "nnunet_prediction_cleanup", "nnunet_dicom_pull"}
    assert dags == {"nnunet_night", *packaged}


def test_the_bundle_brings_the_dags_without_a_copy(site: Site, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "include/datasets").mkdir(parents=True)
    (home / "dags").mkdir()
    (home / "include/datasets/night.yaml").write_text("dataset: {id: 4, name: Night, source: /data/incoming/night}\n")
    more = {"AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": BUNDLES}
    run([site.python, "-m", "airflow", "db", "migrate"], home=home, more=more)
    run([site.python, "-m", "airflow", "dags", "reserialize"], home=home, more=more)
    assert listing(site.python, home, "dags", "list-import-errors", more=more) == []
    dags = {dag["dag_id"]: dag["bundle_name"] for dag in listing(site.python, home, "dags", "list", more=more)}
    assert dags["nnunet_night"] == dags["nnunet_prediction"] == "nnunet"
    assert "nnunet_hippocampus" not in dags, "an example of the package is nobody's dataset"


def test_a_connection_in_airflows_database_is_found_and_a_missing_one_is_named(site: Site, tmp_path: Path) -> None:
    extra = json.dumps({"workspace": str(tmp_path / "other")})
    site.airflow("connections", "add", "other", "--conn-type", "nnunet", "--conn-extra", extra)
    assert "no dataset is registered" in site.airflow("nnunet", "dataset", "list", "--conn-id", "other").stdout
    done = site.airflow("nnunet", "dataset", "list", "--conn-id", "no_such", check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert "--conn-id='no_such': Airflow has no connection of this name" in done.stderr
    assert "Traceback" not in done.stderr
