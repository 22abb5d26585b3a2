"""Who may read what lies in a workspace."""

from __future__ import annotations

import stat
from pathlib import Path

from nnunet_jobs.contract.storage.workspace import Workspace


def open_to_others(*roots: Path) -> list[str]:
    """Files and folders of some roots, themselves included, with any right for group or others. Links have no mode of their own."""
    found = [path for root in roots for path in (root, *root.rglob("*")) if not path.is_symlink()]
    return [f"{path} {stat.filemode(path.stat().st_mode)}" for path in found if path.stat().st_mode & 0o077]


def data_roots(workspace: Workspace) -> list[Path]:
    """The folders of a workspace that hold patient data."""
    return [Path(root) for root in (workspace.raw, workspace.preprocessed, workspace.results, workspace.jobs, *workspace.output_roots)]
