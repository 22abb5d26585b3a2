"""How other processes find this package: never by a path on which a module of somebody else goes before the standard library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PLUGINS = Path(__file__).resolve().parents[4] / "plugins"

# The parent runs as an installed package does: its folder is the last on the path, and holds what else was installed.
PROGRAM = """
import json, os, subprocess, sys
sys.path = [path for path in sys.path if not path.endswith("/plugins")] + [sys.argv[1]]
import argparse
from airflow_nnunet.jobs.jobs_command import run_jobs_command
from nnunet_jobs.runner import attempt_limits
from nnunet_jobs import processes
from nnunet_jobs.contract.job import packages
assert packages.home() == packages.Path(sys.argv[1]), packages.home()

def argparse_of(python, environment):
    code = "import argparse; print(argparse.__file__)"
    return subprocess.run([python, "-c", code], env=environment, capture_output=True, text=True).stdout.strip()

found = {
    "reader": argparse_of(sys.executable, processes.reader_environment()),
    "job": argparse_of(sys.executable, {**os.environ, **attempt_limits.environment(cpus=1, device="cpu", gpus=(), step="train")}),
}
for name, python in (("this", sys.executable), ("other", sys.argv[2])):
    with packages.for_command(python, os.environ) as environment:
        found[name] = argparse_of(python, environment)
done = run_jobs_command(sys.argv[2], "phantom", "--help", capture_output=True)
print(json.dumps([argparse.__file__, found, done.returncode, done.stderr[-500:]]))
"""


@pytest.mark.parametrize("name", ["site-packages", "dist-packages", "target"])
def test_no_process_of_ours_gets_a_folder_of_installed_packages_on_its_path(tmp_path: Path, name: str) -> None:
    site = tmp_path / name
    for package in ("nnunet_jobs", "airflow_nnunet"):
        shutil.copytree(PLUGINS / package, site / package, ignore=shutil.ignore_patterns("__pycache__"))
    (site / "argparse.py").write_text("raise SystemExit('somebody else')\n")  # as unittest2 brings one
    (site / "argparse-1.4.0.dist-info").mkdir()
    other = tmp_path / "other-python"
    other.symlink_to(os.path.realpath(sys.executable))  # an interpreter without this environment's packages
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    command = [sys.executable, "-c", PROGRAM, str(site), str(other)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    standard, found, code, said = json.loads(done.stdout.splitlines()[-1])
    assert found == dict.fromkeys(("reader", "job", "this", "other"), standard)
    assert (code, said) == (0, "")
