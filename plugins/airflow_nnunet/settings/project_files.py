"""Finds the data files of the package (pools, DAG files, examples, ``airflow.cfg.template``) and copies them to a site.

In the wheel these files are inside this package. In an editable install they are in the project's folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nnunet_jobs.contract.failure import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]
# Airflow makes a DAG of every dataset file, so a site gets the examples under a name that is ignored.
_EXAMPLES = ("include/datasets/hippocampus.yaml", "include/datasets/phantom_tiny.yaml")
_NOT_A_SITES = ("dags/hospital_etl_example.py",)


def project_files() -> Path:
    """Return the folder that holds ``include``, ``dags`` and ``airflow.cfg.template``."""
    inside = _PACKAGE / "project_files"
    return inside if inside.is_dir() else _PACKAGE.parent.parent


def comes_with_the_package(path: Path) -> bool:
    """Return whether a path is in the wheel's data, which must not be edited."""
    return path.resolve().is_relative_to(_PACKAGE / "project_files")


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Describes one file of a site.

    Attributes:
        path: Path relative to the site's folder.
        kept: Whether the file existed and was left unchanged.
    """

    path: str
    kept: bool


def write_site(folder: Path, *, dags: bool = True) -> Iterator[Written]:
    """Write the files that a site edits into a folder. Existing files are left unchanged.

    Args:
        folder: Folder of the project, such as AIRFLOW_HOME; created if it is missing.
        dags: Whether to write the DAG files; without them, use
            :class:`~airflow_nnunet.dag_bundle.NnunetDagBundle`.

    Raises:
        ConfigError: ``folder`` is not a folder.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(field="folder", value=str(folder), problem="is a file", fix="name a folder, such as AIRFLOW_HOME")
    source = project_files()
    groups = ["include", *(["dags"] if dags else [])]
    paths = [path for group in groups for path in sorted((source / group).rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    for path in [*paths, source / "airflow.cfg.template"]:
        name = path.relative_to(source).as_posix()
        if name in _NOT_A_SITES:
            continue
        target = folder / (f"{name}.example" if name in _EXAMPLES else name)
        kept = target.exists()
        if not kept:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "xb") as file:
                file.write(path.read_bytes())
        yield Written(path=target.relative_to(folder).as_posix(), kept=kept)
