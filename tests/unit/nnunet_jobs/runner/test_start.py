"""Every job, its leasing container and the server begin with the runner's imports: what only a step needs is not among them."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ["numpy", "scipy", "torch", "nnunetv2", "nibabel", "SimpleITK", "skimage", "PIL", "pydicom", "fastapi", "pynvml"]


def test_the_runner_starts_without_what_only_its_steps_need() -> None:
    program = f"import json, sys, nnunet_jobs.__main__; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == []
