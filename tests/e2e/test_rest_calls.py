"""The REST calls of ``docs/how-to/rest.md``, as they stand there, against a running Airflow."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_nnunet.prediction_api.rest_client import AirflowClient
from devtools.stack_config import password_file
from devtools.testbed.serving import DATASET
from support.predictions_api import finished
from support.snippets import PROJECT, snippets, words
from support.stack import Site

pytestmark = pytest.mark.e2e


def test_the_calls_of_the_page_predict_a_case(served: Site, alice: AirflowClient, scan: Path, tmp_path: Path) -> None:
    if not (shutil.which("curl") and shutil.which("jq")):
        pytest.skip("needs curl and jq, which the page's calls use")
    shown = [snippet.text for snippet in snippets(PROJECT / "docs" / "how-to" / "rest.md") if snippet.language == "console"]
    first = next(number for number, line in enumerate(shown) if line.startswith("LOGIN="))
    login, token, post, status, result, command = (re.split(r"\s{2,}#", line)[0] for line in shown[first : first + 6])
    shutil.copyfile(scan, tmp_path / "case_0000.nii.gz")
    password = json.loads(password_file(served.stack.home).read_text())["alice"]
    variables = {
        **os.environ,
        "NNUNET_API_USERNAME": "alice",
        "NNUNET_API_PASSWORD": password,
        "NNUNET_API_URL": served.stack.url,
        "AIRFLOW_HOME": str(served.root / "cli-home"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(PROJECT / "plugins"),
    }

    def shell(*lines: str) -> str:
        script = "\n".join(lines).replace("http://127.0.0.1:8080", served.stack.url)
        script = script.replace("dataset=4", f"dataset={DATASET}").replace("--dataset 4", f"--dataset {DATASET}")
        done = subprocess.run(
            ["bash", "-euc", script], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    taken = shell(login, token, post)
    assert " 202 " in taken.splitlines()[0]
    (prediction,) = re.findall(r"location: /nnunet-api/predictions/(p-\w+)", taken)
    assert finished(alice, prediction)["status"] == "succeeded"
    seen = json.loads(shell(login, token, status.replace("p-...", prediction)))
    assert set(seen["volumes_ml"]) == {"head", "tail"}
    shell(login, token, result.replace("p-...", prediction))
    fetched = (tmp_path / "segmentation.nii.gz").read_bytes()
    (tmp_path / "segmentation.nii.gz").unlink()
    assert words(command)[1:4] == ["airflow", "nnunet", "predict"]
    assert "ml" in shell(login, token, command)
    assert (tmp_path / "segmentation.nii.gz").read_bytes() == fetched
