"""What the doctor says about dataset files before their DAGs run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from support.airflow import environment, run


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, None),
        ({"predict": {"output": "/elsewhere"}}, "predict.output='/elsewhere': outside the allowed folders"),
        ({"predict": {"cases": "/elsewhere"}}, "predict.cases='/elsewhere': outside the allowed folders"),
        ({"dataset": {"source": "/elsewhere"}}, "dataset.source='/elsewhere': outside the allowed folders"),
    ],
)
def test_folders_that_a_dag_may_not_read_or_write_are_named(home: Path, changes: dict[str, dict[str, str]], found: str | None) -> None:
    source = home / "input" / "scans"
    source.mkdir(parents=True)
    whole = {
        "dataset": {"id": 4, "name": "Small", "source": str(source)} | changes.get("dataset", {}),
        "predict": changes.get("predict", {}),
    }
    datasets = home / "datasets"
    datasets.mkdir()
    (datasets / "small.yaml").write_text(yaml.safe_dump(whole))
    done = run(["-m", "airflow_nnunet", "doctor"], environment(home, datasets=str(datasets), input_roots=str(home / "input")))
    lines = [line for line in done.stdout.splitlines() if "dataset file small" in line]
    assert lines == ([] if found is None else lines), done.stdout
    assert found is None or (len(lines) == 1 and found in lines[0]), done.stdout
