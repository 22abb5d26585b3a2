"""Commands and whole DAGs in a private Airflow: pools, doctor, XComs, retries, plugin, what an import costs."""

from __future__ import annotations

import json
import sqlite3
import textwrap
from pathlib import Path

import pytest

from airflow_nnunet.cli.pools import read_pools
from nnunet_jobs.contract.failure import ConfigError
from support.airflow import PROJECT, environment, run


def rows(home: Path, query: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(home / "airflow.db") as database:
        return database.execute(query).fetchall()


def test_doctor_names_the_missing_pool_and_sync_pools_mends_it(home: Path) -> None:
    env = environment(home, cpu_slots="3", input_roots=str(home))
    datasets = home / "include" / "datasets"
    datasets.mkdir(parents=True)
    (datasets / "lonely.yaml").write_text("dataset: {id: 1, name: Lonely, source: /data}\npool: gpux\n")
    (datasets / "broken.yaml").write_text("dataset: {id: 2, name: Broken, source: /data}\nschedule: nightly\n")
    sick = run(["-m", "airflow", "nnunet", "doctor"], env)
    assert sick.returncode == 1, sick.stderr
    assert "FAIL  pool gpu: missing" in sick.stdout
    assert "sync-pools" in sick.stdout
    synced = run(["-m", "airflow", "nnunet", "sync-pools", PROJECT / "include" / "pools.json"], env)
    assert synced.returncode == 0, synced.stderr
    assert rows(home, "select include_deferred from slot_pool where pool = 'gpu'") == [(1,)]
    # The same command where the package is a plain folder on PYTHONPATH.
    well = run(["-m", "airflow_nnunet", "doctor"], env)
    assert well.returncode == 0, well.stdout + well.stderr
    assert "FAIL" not in well.stdout
    assert "ok    pool gpu" in well.stdout
    assert "warn  pool gpux: missing, tasks of lonely.yaml would wait forever" in well.stdout
    assert "broken.yaml:2: schedule='nightly': not a cron expression" in well.stdout
    for topic in ("raw", "leases", "versions", "shared memory", "open files", "GPUs"):
        assert topic in well.stdout
    assert not (home / "nnunet").exists()  # looking leaves nothing behind


def test_doctor_names_a_folder_and_an_interpreter_that_cannot_be_used(home: Path) -> None:
    (home / "file").write_text("")
    done = run(["-m", "airflow_nnunet", "doctor"], environment(home, raw=str(home / "file" / "raw"), python="/no/such/python"))
    assert done.returncode == 1
    assert f"FAIL  raw: {home}/file/raw: {home}/file is not a folder" in done.stdout
    assert "set raw in section [nnunet]" in done.stdout
    assert "FAIL  python" in done.stdout
    assert "/no/such/python" in done.stdout


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "must be an object"),
        ("{", "not JSON"),
        ('{"gpu": {"slots": "many", "description": "d"}}', "slots='many'"),
        ('{"gpu": {"slots": -1, "description": "d"}}', "slots=-1"),
        ('{"gpu": {"slots": 1}}', "'description' is missing"),
        ('{"gpu": {"slots": 1, "description": " "}}', "description=' '"),
        ('{"gpu": {"slots": 1, "description": "d", "size": 2}}', "unknown field 'size'"),
        ('{"gpu": {"slots": 1, "description": "d", "include_deferred": "yes"}}', "include_deferred='yes'"),
    ],
)
def test_a_wrong_pools_file_is_refused_with_the_place(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "pools.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=words.replace("[", r"\[")):
        read_pools(path)
    with pytest.raises(ConfigError, match="no such file"):
        read_pools(tmp_path / "other.json")


PIPELINE = """
from airflow.sdk import DAG
from airflow_nnunet.operators import *

with DAG("pipeline", schedule=None, params={"id": 4}) as dag:
    register = RegisterDatasetOperator(task_id="register", dataset_id="{{ params.id }}", name="Hip", source="/in", multiple_outputs=True)
    preprocess = PreprocessOperator(task_id="preprocess", datasets=["{{ ti.xcom_pull(task_ids='register')['dataset'] }}"],
                                    configurations="2d, 3d_fullres", multiple_outputs=True)
    train = TrainFoldOperator.partial(task_id="train", dataset=register.output["dataset"], version=preprocess.output["version"],
                                      epochs="{{ 3 }}").expand_kwargs([{"configuration": "2d", "fold": fold} for fold in range(2)])
    best = FindBestConfigOperator(task_id="best", dataset=4, folds=[0, 1], promote="never")
    predict = BatchPredictOperator(task_id="predict", dataset=4, cases="holdout", output_folder="/out")
    register >> preprocess  # a template that pulls an XCom is no dependency
    train >> best >> predict

if __name__ == "__main__":
    print("state", dag.test().state)
"""


def test_a_whole_pipeline_passes_its_results_on(home: Path) -> None:
    file = home / "dags" / "pipeline.py"
    file.write_text(PIPELINE)
    done = run([file], environment(home, backend="fake"))
    assert "state success" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    results = {
        (task, index): json.loads(str(value))
        for task, index, value in rows(home, "select task_id, map_index, value from xcom where key = 'return_value'")
    }
    assert results[("preprocess", -1)]["dataset"] == "Dataset004_Hip"
    assert results[("preprocess", -1)]["configurations"] == ["2d", "3d_fullres"]
    assert [results[("train", fold)]["fold"] for fold in (0, 1)] == [0, 1]
    assert results[("train", 1)]["version"] == results[("preprocess", -1)]["version"]
    shown = rows(home, "select rendered_map_index, pool, max_tries from task_instance where task_id = 'train' order by map_index")
    assert shown == [("2d / fold 0", "gpu", 3), ("2d / fold 1", "gpu", 3)]
    jobs = home / "nnunet" / "jobs"
    jobs.rename(home / "moved")
    doctor = run(["-m", "airflow_nnunet", "doctor"], environment(home, backend="fake")).stdout
    assert f"jobs of {jobs} cannot be found; that folder is missing: it was moved, or is not mounted" in doctor
    doctor = run(["-m", "airflow_nnunet", "doctor"], environment(home, backend="fake", jobs=str(home / "moved"))).stdout
    assert "cannot be found" not in doctor, "the settings say where it is now"
    events = rows(home, "select asset.uri, asset_event.extra from asset_event join asset on asset.id = asset_event.asset_id")
    assert [uri for uri, _ in events] == ["nnunet://dataset/Dataset004_Hip"]  # nothing was promoted, so no event says so


TRIES = """
import json
from airflow.sdk import DAG
from airflow_nnunet.operators import RegisterDatasetOperator
from airflow_nnunet.jobs.retry import NnunetRetryPolicy

class Toy(RegisterDatasetOperator):
    absolute_paths = ()  # its source is the script of a step

    def result_ready(self, context, result):
        pass

def toy(task_id, **script):
    policy = NnunetRetryPolicy(base=0.1, cap=0.1)
    return Toy(task_id=task_id, dataset_id=1, name="T", source=json.dumps(script), retry_policy=policy, trigger_rule="all_done")

with DAG("tries", schedule=None) as dag:
    toy("mends", fail_first="hang") >> toy("stays", **{"raise": "data"})

if __name__ == "__main__":
    print("state", dag.test().state)
"""


def test_real_jobs_are_deferred_on_and_retried_by_class(home: Path) -> None:
    file = home / "dags" / "tries.py"
    file.write_text(TRIES)
    options = json.dumps({"module": "support.jobs", "environment": {"PYTHONPATH": str(PROJECT / "tests")}})
    done = run([file], environment(home, backend_options=options, poll_interval="0.1"))
    states = dict(rows(home, "select task_id, state || ' ' || try_number from task_instance"))
    assert states == {"mends": "success 2", "stays": "failed 1"}, done.stdout[-5000:] + done.stderr[-3000:]
    ((value,),) = rows(home, "select value from xcom where key = 'return_value'")
    assert json.loads(str(value))["attempt"] == 2
    assert "data: as the test asked" in done.stdout


def test_the_plugin_is_loaded_once_although_its_folder_is_there_too(home: Path) -> None:
    env = environment(home) | {"AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins")}
    program = """
        import json, sys
        from airflow import plugins_manager
        plugins, errors = plugins_manager._get_plugins()
        print(json.dumps([[plugin.name for plugin in plugins], errors, sorted({"torch", "nnunetv2", "numpy"} & set(sys.modules))]))
    """
    done = run(["-c", textwrap.dedent(program)], env)
    assert done.returncode == 0, done.stderr[-3000:]
    names, errors, heavy = json.loads(done.stdout.splitlines()[-1])
    assert names.count("nnunet") == 1, done.stderr
    assert errors == {}
    assert heavy == []


def test_operators_import_nothing_heavy_and_cost_little(home: Path) -> None:
    program = """
        import json, sys, time
        import airflow.sdk, airflow.triggers.base
        before = set(sys.modules)
        start = time.perf_counter()
        import airflow_nnunet.operators
        seconds = time.perf_counter() - start
        new = set(sys.modules) - before
        heavy = {"torch", "nnunetv2", "numpy", "nibabel", "SimpleITK", "pynvml", "fastapi", "sqlalchemy"} & new
        print(json.dumps([seconds, len(new), sorted(heavy)]))
    """
    done = run(["-c", textwrap.dedent(program)], environment(home))
    seconds, modules, heavy = json.loads(done.stdout.splitlines()[-1])
    print(f"import airflow_nnunet.operators: {seconds * 1000:.0f} ms, {modules} modules beyond airflow.sdk")
    assert heavy == []


def test_the_provider_is_what_the_distribution_says() -> None:
    import importlib.metadata
    import tomllib

    import airflow_nnunet
    from airflow_nnunet.provider_info import get_provider_info

    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    info = get_provider_info()
    assert info["package-name"] == project["name"]
    assert info["versions"] == [airflow_nnunet.__version__] == [importlib.metadata.version(project["name"])]
    schema = Path(str(__import__("airflow").__path__[0])) / "provider_info.schema.json"
    known = json.loads(schema.read_text())["properties"]
    assert set(info) - {"versions"} <= set(known)
    for path in [info["connection-types"][0]["hook-class-name"], *info["extra-links"], *info["cli"]]:
        module, _, name = path.rpartition(".")
        assert hasattr(__import__(module, fromlist=[name]), name)
