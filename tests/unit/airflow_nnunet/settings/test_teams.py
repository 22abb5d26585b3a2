"""Teams: what a team's file gives to datasets and operators, what it keeps apart, and how a wrong one is reported."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from airflow.sdk import DAG

from airflow_nnunet.cli.pools import team_pools
from airflow_nnunet.jobs.exceptions import InvalidConfig
from airflow_nnunet.jobs.task_state import JOB_XCOM
from airflow_nnunet.operators import BatchPredictOperator, PreprocessOperator, RegisterDatasetOperator, TrainFoldOperator
from airflow_nnunet.pipelines.dag_builder import build_training_dag, check_datasets
from airflow_nnunet.pipelines.dataset_config import DatasetConfigError, load_config, load_folder
from airflow_nnunet.settings.pool_names import COMMON_POOLS
from airflow_nnunet.settings.resolver import resolve_config
from airflow_nnunet.settings.teams import load_teams
from devtools.schema_docs import team_reference
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.job.folder import JobDir
from support.airflow import PROJECT, context, environment, run

DATASET = "dataset: {id: 4, name: Hippocampus, source: /data/radiology/incoming}\nteam: radiology\n"
TRAIN = {"dataset": 4, "configuration": "2d", "fold": 0}


def team_file(name: str, *lines: str) -> str:
    return "\n".join(["pool: {slots: 2}", f"nnunet: {{workspace: /data/{name}/nnunet, input_roots: [/data/{name}/incoming]}}", *lines, ""])


@pytest.fixture
def teams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Radiology with everything of its own, cardiology with the least."""
    folder = tmp_path / "teams"
    folder.mkdir()
    monkeypatch.setenv("AIRFLOW__NNUNET__TEAMS", str(folder))
    (folder / "radiology.yaml").write_text(team_file("radiology", "queue: gpu", "priority: 5"))
    (folder / "cardiology.yaml").write_text(team_file("cardiology"))
    return folder


def dataset(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text(DATASET + "\n".join(lines) + "\n")
    return path


# --- what a team gives ----------------------------------------------------------------------------------------------
def test_a_dataset_file_takes_pool_queue_and_priority_of_its_team(teams: Path, tmp_path: Path) -> None:
    config = load_config(dataset(tmp_path))
    assert (config.pool, config.queue, config.priority) == ("radiology", "gpu", 5)
    dag = build_training_dag(config)
    for name in ("train", "find_best", "predict"):
        task = dag.get_task(name)
        assert (task.pool, task.queue, task.priority_weight) == ("radiology", "gpu", 5), name
    for name in ("register", "preprocess"):
        task = dag.get_task(name)
        assert (task.pool, task.queue) == ("default_pool", "default"), "what takes no GPU takes no slot and no queue of those that do"
        assert task.team == "radiology"


def test_what_a_dataset_file_says_itself_wins(teams: Path, tmp_path: Path) -> None:
    (teams / "radiology.yaml").write_text(team_file("radiology", "queue: gpu", "priority: 5"))
    config = load_config(dataset(tmp_path, "pool: mri", "queue: gpu-host2", "priority: 1"))
    assert (config.pool, config.queue, config.priority) == ("mri", "gpu-host2", 1)
    task = build_training_dag(config).get_task("find_best")
    assert (task.pool, task.queue, task.priority_weight) == ("mri", "gpu-host2", 1)


def test_an_operator_takes_them_too_mapped_or_not_and_from_default_arguments(teams: Path) -> None:
    with DAG("single", schedule=None):
        plain = TrainFoldOperator(task_id="plain", **TRAIN, team="radiology")
        mapped = TrainFoldOperator.partial(task_id="mapped", dataset=4, configuration="2d", team="radiology").expand(fold=[0, 1])
        chosen = TrainFoldOperator(task_id="chosen", **TRAIN, team="radiology", queue="other", priority_weight=9, pool="mine")
    for task in (plain, mapped):
        assert (task.pool, task.queue, task.priority_weight) == ("radiology", "gpu", 5)
    assert (chosen.pool, chosen.queue, chosen.priority_weight) == ("mine", "other", 9)
    with DAG("all", schedule=None, default_args={"team": "radiology", "queue": "mine"}):
        plain = TrainFoldOperator(task_id="plain", **TRAIN)
        mapped = TrainFoldOperator.partial(task_id="mapped", dataset=4, configuration="2d").expand(fold=[0, 1])
        light = PreprocessOperator(task_id="light", datasets=["4"])
    for task in (plain, mapped):
        assert (task.pool, task.queue, task.priority_weight) == ("radiology", "mine", 5)
    assert (light.team, light.pool) == ("radiology", "default_pool")


def test_a_teams_jobs_live_in_its_workspace_are_labelled_and_share_the_hosts_leases(teams: Path, nnunet: Path, tmp_path: Path) -> None:
    work = tmp_path / "radiology"
    (teams / "radiology.yaml").write_text(f"pool: {{slots: 2}}\nnnunet: {{workspace: {work}}}\n")
    ctx = context()
    TrainFoldOperator(task_id="task", **TRAIN, team="radiology").execute(ctx)
    job = JobDir(ctx["ti"].pushed[JOB_XCOM]["path"])
    spec = job.spec()
    assert job.path.parent == work / "jobs"
    assert spec.labels["team"] == "radiology"
    assert spec.workspace.leases == str(nnunet / "leases"), "one ledger for all teams, or GPUs are given away twice"
    plain = context()
    TrainFoldOperator(task_id="task", **TRAIN).execute(plain)
    assert Path(plain["ti"].pushed[JOB_XCOM]["path"]).parent == nnunet / "jobs"


# --- what it keeps apart --------------------------------------------------------------------------------------------
def test_no_root_of_the_section_is_inherited(teams: Path, nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PREPROCESSED": "/fast", "INPUT_ROOTS": "/archive", "OUTPUT_ROOTS": "/out", "CPU_SLOTS": "3"}.items():
        monkeypatch.setenv(f"AIRFLOW__NNUNET__{name}", value)
    workspace = resolve_config(team="cardiology").workspace
    assert workspace.preprocessed == "/data/cardiology/nnunet/nnUNet_preprocessed"
    assert workspace.input_roots == ("/data/cardiology/incoming",)
    assert workspace.output_roots == ("/data/cardiology/nnunet/predictions",)
    assert workspace.cpu_slots == 3, "the host's"
    assert resolve_config().workspace.input_roots == ("/archive",)


def test_a_real_job_of_a_team_cannot_read_what_another_team_or_the_section_may(
    teams: Path, nnunet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("radiology", "cardiology", "common"):
        (tmp_path / name / "incoming").mkdir(parents=True)
    (tmp_path / "cardiology" / "incoming" / "link").symlink_to(tmp_path / "radiology" / "incoming")
    for name in ("radiology", "cardiology"):
        root = tmp_path / name
        text = f"pool: {{slots: 2}}\nnnunet: {{workspace: {root}/work, input_roots: [{root}/incoming], backend: local}}\n"
        (teams / f"{name}.yaml").write_text(text)
    monkeypatch.setenv("AIRFLOW__NNUNET__INPUT_ROOTS", str(tmp_path / "common" / "incoming"))
    for number, source in enumerate(
        ("radiology/incoming", "common/incoming", "cardiology/incoming/link", "cardiology/incoming/../../radiology/incoming")
    ):
        task = RegisterDatasetOperator(
            task_id=f"register{number}", dataset_id=4, name="A", source=str(tmp_path / source), team="cardiology", deferrable=False
        )
        with pytest.raises(InvalidConfig, match="outside the allowed folders"):
            task.execute(context(task_id=f"register{number}"))
    assert not (tmp_path / "cardiology" / "work" / "nnUNet_raw" / "Dataset004_A").exists()


def test_a_team_cannot_write_outside_its_roots(teams: Path) -> None:
    workspace = resolve_config(team="cardiology").workspace
    for path in ("/data/radiology/nnunet/predictions", "/data/cardiology/nnunet/nnUNet_raw", "/data/cardiology/nnunet/predictions/../.."):
        with pytest.raises(ConfigError, match="outside the allowed folders"):
            workspace.confine_output(path, field="output")


def test_a_team_is_no_template_and_comes_without_a_connection(teams: Path) -> None:
    assert "team" not in BatchPredictOperator.template_fields, "whoever triggers a run must not choose whose data it sees"
    with pytest.raises(ConfigError, match=r"team='{{ params.team }}': .* is missing"):
        TrainFoldOperator(task_id="task", **TRAIN, team="{{ params.team }}")
    with pytest.raises(ConfigError, match=r"nnunet_conn_id='other'.*leave this empty"):
        TrainFoldOperator(task_id="task", **TRAIN, team="radiology", nnunet_conn_id="other")
    with pytest.raises(ConfigError, match=r"nnunet_conn_id='other'.*leave this empty"):
        resolve_config("other", team="radiology")


# --- what is refused ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["team: radiologie"], r"a\.yaml:3: team='radiologie': .*radiologie\.yaml is missing; .*there: cardiology, radiology"),
        (["pool: cardiology"], r"a\.yaml:3: pool='cardiology': belongs to team cardiology; name another pool"),
        (["pool: gpu"], r"a\.yaml:3: pool='gpu': is shared by all teams.*remove this field"),
        (["nnunet_conn_id: other"], r"a\.yaml:3: nnunet_conn_id='other': the workspace of team radiology is in its own file; remove"),
        (["queue: 3"], r"a\.yaml:3: queue=3: Input should be a valid string"),
    ],
)
def test_a_wrong_team_in_a_dataset_file_is_named_with_line_and_mend(teams: Path, tmp_path: Path, lines: list[str], message: str) -> None:
    path = dataset(tmp_path, *lines)
    if lines[0].startswith("team"):
        path.write_text(path.read_text().replace("team: radiology\n", "# the name is wrong\n"))
    with pytest.raises(DatasetConfigError, match=message):
        load_config(path)


def test_a_dataset_without_a_team_cannot_take_a_teams_slots(teams: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(DATASET.replace("team: radiology", "pool: radiology"))
    with pytest.raises(DatasetConfigError, match=r"a\.yaml:2: pool='radiology': belongs to team radiology; add team: radiology"):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pool: {slots: 0}\nnnunet: {workspace: /d}\n", r"b\.yaml:1: pool\.slots=0: must be 1 or more"),
        ("pool: {slots: some}\nnnunet: {workspace: /d}\n", r"b\.yaml:1: pool\.slots='some'"),
        ("pool: {name: gpu, slots: 1}\nnnunet: {workspace: /d}\n", r"b\.yaml:1: pool\.name='gpu': is shared by all teams"),
        ("pool: {name: radiology, slots: 1}\nnnunet: {workspace: /d}\n", r"b\.yaml:1: pool\.name='radiology': team a has it already"),
        ("pool: {slots: 1}\n", r"b\.yaml:1: nnunet: is missing; add it"),
        ("pool: {slots: 1}\nnnunet: {workspace: d}\n", r"b\.yaml:2: nnunet\.workspace='d': must be an absolute path"),
        ("pool: {slots: 1}\nnnunet:\n  workspace: /d\n  leases: /l\n", r"b\.yaml:4: nnunet\.leases: unknown field; remove it; known here"),
        ("pool: {slots: 1}\nnnunet:\n  workspace: /d\n  cpu_slots: 9\n", r"b\.yaml:4: nnunet\.cpu_slots: unknown field"),
        ("pool: {slots: 1}\nnnunet: {workspace: /data/a}\n", r"b\.yaml:2: nnunet\.raw='/data/a/nnUNet_raw': overlaps /data/a/nnUNet_raw"),
        (
            "pool: {slots: 1}\nnnunet:\n  workspace: /d\n  input_roots: [/data]\n",
            r"b\.yaml:4: nnunet\.input_roots='/data': overlaps /data/a",
        ),
        ("pool: {slots: 1}\nnnunet:\n  workspace: /in/a/w\n", r"b\.yaml:2: nnunet\.raw=.*overlaps /in/a \(input_roots of team a\)"),
        ("pool: {slots: 1}\nnnunet:\n  workspace: /d\n  output_roots: [/data/a/predictions]\n", r"b\.yaml:4: nnunet\.output_roots="),
        ("- 1\n", r"b\.yaml: must be a mapping with 'pool:' and 'nnunet:'"),
        ("a: [\n", r"b\.yaml: not valid YAML"),
    ],
)
def test_a_wrong_team_file_is_an_import_error_with_line_and_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.setenv("AIRFLOW__NNUNET__TEAMS", str(tmp_path))
    (tmp_path / "a.yaml").write_text("pool: {name: radiology, slots: 1}\nnnunet: {workspace: /data/a, input_roots: [/in/a]}\n")
    (tmp_path / "b.yaml").write_text(text)
    with pytest.raises(DatasetConfigError, match=message):
        check_datasets(tmp_path / "datasets")
    assert list(load_teams().configs) == ["a"], "a broken team leaves the others alone"
    with pytest.raises(ConfigError, match="team='b': its file is wrong"):
        load_teams().get("b")


def test_one_team_may_read_what_another_gives_out(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("pool: {slots: 1}\nnnunet: {workspace: /a, output_roots: [/exchange/a]}\n")
    (tmp_path / "b.yaml").write_text("pool: {slots: 1}\nnnunet: {workspace: /b, input_roots: [/exchange/a, /archive]}\n")
    (tmp_path / "c.yaml").write_text("pool: {slots: 1}\nnnunet: {workspace: /c, input_roots: [/exchange, /archive]}\n")
    assert not load_teams(tmp_path).errors


def test_a_teams_name_is_its_files(tmp_path: Path) -> None:
    (tmp_path / "MRI Team.yaml").write_text(team_file("mri"))
    assert "a team is named after its file" in load_teams(tmp_path).errors["MRI Team"]


def test_a_changed_file_is_seen_and_a_broken_team_takes_only_its_own_datasets(teams: Path, tmp_path: Path) -> None:
    folder = tmp_path / "datasets"
    folder.mkdir()
    (folder / "mine.yaml").write_text(DATASET)
    (folder / "plain.yaml").write_text("dataset: {id: 5, name: Other, source: /data}\n")
    assert set(load_folder(folder).configs) == {"mine.yaml", "plain.yaml"}
    (teams / "radiology.yaml").write_text("pool: {slot: 2}\n")
    loaded = load_folder(folder)
    assert set(loaded.configs) == {"plain.yaml"}
    assert "its file is wrong" in loaded.errors["mine.yaml"]
    assert "did you mean 'slots'?" in loaded.errors["mine.yaml"]


def test_a_team_file_is_read_whatever_its_ending_and_two_of_one_team_are_named(teams: Path) -> None:
    (teams / "surgery.yml").write_text("pool: {slots: 2}\nnnunet: {workspace: /data/surgery}\n")
    assert load_teams().get("surgery").pool.slots == 2
    (teams / "surgery.yaml").write_text("pool: {slots: 3}\nnnunet: {workspace: /data/surgery}\n")
    assert "team surgery has two files with different endings" in load_teams().errors["surgery"]
    with pytest.raises(ConfigError, match="its file is wrong"):
        load_teams().get("surgery")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('queue: "gpu,cpu"', r"surgery\.yaml:3: queue='gpu,cpu': has a comma"),
        ("priority: 99999999999", r"surgery\.yaml:3: priority=99999999999"),
        ("pool: {slots: 3}", r"surgery\.yaml:3: pool: is set here and in line 1"),
    ],
)
def test_what_airflow_would_refuse_is_said_of_the_teams_file(teams: Path, line: str, words: str) -> None:
    (teams / "surgery.yaml").write_text(f"pool: {{slots: 2}}\nnnunet: {{workspace: /data/surgery}}\n{line}\n")
    with pytest.raises(ConfigError, match=words):
        load_teams().get("surgery")


def test_the_example_is_right_and_the_page_is_made_from_the_schema(tmp_path: Path) -> None:
    example = PROJECT / "include" / "teams" / "radiology.yaml.example"
    (tmp_path / "radiology.yaml").write_text(example.read_text())
    team = load_teams(tmp_path).get("radiology")
    assert (team.pool_name, team.pool.slots) == ("radiology", 4)
    assert (PROJECT / "include" / "teams" / "README.md").read_text() == team_reference()


# --- commands -------------------------------------------------------------------------------------------------------
def test_sync_pools_makes_the_teams_pools_and_the_doctor_misses_them(home: Path) -> None:
    folder = home / "include" / "teams"  # beside the DAGs folder
    folder.mkdir(parents=True)
    (folder / "radiology.yaml").write_text(team_file("radiology", "description: MRI of the head"))
    env = environment(home, input_roots=str(home))
    sick = run(["-m", "airflow_nnunet", "doctor"], env)
    assert "FAIL  team radiology: pool radiology is missing" in sick.stdout, sick.stderr
    done = run(["-m", "airflow_nnunet", "sync-pools", PROJECT / "include" / "pools.json"], env)
    assert "pool radiology: 2 slots" in done.stdout, done.stderr
    with sqlite3.connect(home / "airflow.db") as database:
        query = "select slots, include_deferred, description from slot_pool where pool = 'radiology'"
        assert database.execute(query).fetchall() == [(2, 1, "MRI of the head")]


def test_a_team_and_the_pools_file_cannot_have_one_pool(teams: Path, tmp_path: Path) -> None:
    pools = tmp_path / "pools.json"
    pools.write_text(json.dumps({"cardiology": {"slots": 1, "description": "somebody's"}}))
    with pytest.raises(ConfigError, match=r"pool 'cardiology': is in .*pools\.json and of team cardiology"):
        team_pools(pools)
    (teams / "cardiology.yaml").write_text("pool: {}\n")
    with pytest.raises(ConfigError, match=r"cardiology\.yaml:1: pool\.slots: is missing"):
        team_pools(PROJECT / "include" / "pools.json")


def test_the_pools_of_everybody_are_those_of_the_pools_file_and_airflows_own() -> None:
    assert set(COMMON_POOLS) == {*json.loads((PROJECT / "include" / "pools.json").read_text()), "default_pool"}
