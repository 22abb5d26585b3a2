"""Builds the images with docker or podman, with the versions of the provider and of constraints.txt as tag and labels.

python docker/build.py [nnunet] [airflow] [worker] [--accelerator cpu] [--torch-backend cpu] [--base IMAGE] [--tag TAG]
    [-- arguments of `build`]
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
REPOSITORIES = {"nnunet": "nnunet-jobs", "airflow": "nnunet-airflow", "worker": "nnunet-worker"}
# The worker is Airflow on top of the image of the jobs, so that its jobs can run beside it.
DOCKERFILES = {"nnunet": "Dockerfile.nnunet", "airflow": "Dockerfile.airflow", "worker": "Dockerfile.airflow"}


def version() -> str:
    """Return the version of the provider."""
    source = (PROJECT / "plugins" / "airflow_nnunet" / "provider_info.py").read_text()
    found = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    if found is None:
        raise SystemExit('provider_info.py has no line __version__ = "..."; restore it')
    return found[1]


def pinned(package: str) -> str:
    """Return the version of a package in constraints.txt."""
    found = re.search(rf"^{re.escape(package)}==([^\s;]+)", (PROJECT / "constraints.txt").read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit(f"constraints.txt pins no {package}; run `make constraints`")
    return found[1]


def name_of(image: str, *, accelerator: str, tag: str = "") -> str:
    """Return the name of an image, such as ``nnunet-jobs:0.1.0-cpu``."""
    return f"{REPOSITORIES[image]}:{tag or version() + (f'-{accelerator}' if image != 'airflow' else '')}"


def arguments(image: str, *, accelerator: str, torch_backend: str, base: str) -> list[str]:
    """Return the build arguments of one image."""
    values = {"BASE_IMAGE": base, "VERSION": version()}
    if image == "nnunet":
        values |= {"ACCELERATOR": accelerator, "TORCH_BACKEND": torch_backend}
        values |= {"NNUNETV2_VERSION": pinned("nnunetv2"), "TORCH_VERSION": pinned("torch")}
    else:
        values |= {"AIRFLOW_VERSION": pinned("apache-airflow")}
    return [part for name, value in values.items() if value for part in ("--build-arg", f"{name}={value}")]


def main(argv: Sequence[str]) -> int:
    """Build the named images and return the builder's exit code."""
    own, more = (list(argv[: argv.index("--")]), list(argv[argv.index("--") + 1 :])) if "--" in argv else (list(argv), [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", choices=[*REPOSITORIES, []], metavar="IMAGE", help="all images by default")
    parser.add_argument("--accelerator", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--torch-backend", default="", help="uv's --torch-backend, such as cpu; empty: the index's default build, for CUDA")
    parser.add_argument("--base", default="", help="base image, except for the worker; empty: the public one of the Dockerfile")
    parser.add_argument("--tag", default="", help="tag to use instead of the provider's version")
    parser.add_argument("--engine", default=shutil.which("docker") or shutil.which("podman"), help="docker or podman")
    options = parser.parse_args(own)
    if not options.engine:
        print("neither docker nor podman found; install one, or name it with --engine", file=sys.stderr)
        return 2
    for image in options.images or REPOSITORIES:
        name = name_of(image, accelerator=options.accelerator, tag=options.tag)
        base = name_of("nnunet", accelerator=options.accelerator, tag=options.tag) if image == "worker" else options.base
        values = arguments(image, accelerator=options.accelerator, torch_backend=options.torch_backend, base=base)
        command = [options.engine, "build", "--file", str(PROJECT / "docker" / DOCKERFILES[image]), "--tag", name, *values, *more]
        code = subprocess.run([*command, str(PROJECT)], check=False).returncode
        if code:
            return code
        print(f"built {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
