"""Parts of one output folder under a real scheduler, again and again: no case is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from devtools.testbed.serving import DATASET
from nnunet_jobs.contract.storage.files import read_json
from support.batches import make_small_cases
from support.stack import Site

pytestmark = [pytest.mark.e2e, pytest.mark.nightly]

CASES, PARTS, ROUNDS = 200, 4, 20


@pytest.fixture
def wide(promoted: Site) -> Iterator[Site]:
    """All parts may be in flight at once; the host's CPU slots let two compute beside one another."""
    promoted.stack.client.set_pool("gpu", PARTS)
    yield promoted
    promoted.stack.client.set_pool("gpu", 1)


def test_fault_66_parts_predict_every_case_twenty_times(wide: Site) -> None:
    client = wide.stack.client
    client.wait_for_dag("nnunet_prediction")
    folder = Path(wide.workspace.input_roots[0]) / "many"
    names = make_small_cases(folder, CASES)
    lost = {}
    for number in range(ROUNDS):
        output = Path(wide.workspace.output_roots[0]) / f"many-{number}"
        asked = {"dataset": DATASET, "cases": str(folder), "output": str(output), "parts": PARTS, "mirroring": False, "max_failed": 0}
        run_id = client.trigger("nnunet_prediction", asked)
        state = client.wait_for_run("nnunet_prediction", run_id, timeout_s=600)
        assert state == "success", client.states("nnunet_prediction", run_id)
        results = [client.xcom("nnunet_prediction", run_id, "predict", map_index=part) for part in range(PARTS)]
        cases = read_json(output / "predictions.json")["cases"]
        gone = [name for name in names if cases.get(name, {}).get("status") != "predicted" or not (output / f"{name}.nii.gz").is_file()]
        if gone or sum(result["predicted"] for result in results) != CASES:
            lost[number] = gone
    assert lost == {}
