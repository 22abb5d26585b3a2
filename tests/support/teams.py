"""Files of two teams; the one that floods has more slots and a higher priority."""

from __future__ import annotations

from pathlib import Path

FLOOD, LATE = 30, 4
FLOOD_SLOTS = 12
_FILE = """
pool: {{slots: {slots}}}
priority: {priority}
nnunet:
  workspace: {root}/{team}
  backend_options: {{module: support.jobs, environment: {{PYTHONPATH: {tests}}}}}
predictions: {{members: [{member}], quota: 4}}
"""


def write_teams(root: Path, folder: Path) -> None:
    """Write the teams' files to ``folder``; their workspaces are below ``root``."""
    folder.mkdir(parents=True)
    tests = Path(__file__).resolve().parents[1]
    for team, slots, priority, member in (("flood", FLOOD_SLOTS, 10, "frank"), ("late", LATE, 1, "bob")):
        (folder / f"{team}.yaml").write_text(_FILE.format(slots=slots, priority=priority, root=root, team=team, tests=tests, member=member))
