"""What a validation leaves for a cascade's next stage goes by the exact name of its case."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nnunet_jobs.training import validation


def test_a_case_never_takes_the_file_of_one_whose_name_begins_with_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases are exported side by side: `sub.001` may be half written when `sub` is done."""

    def save(logits: Any, shape: Any, name: str, *rest: Any) -> None:
        Path(f"{name}.b2nd").write_text(logits)

    def dataset_class(*_: Any) -> Any:
        return SimpleNamespace(load_case=lambda case: (SimpleNamespace(shape=(1, 2, 3, 4)), None, None, None))

    parts = {"inference.export_prediction": {"resample_and_save": save}}
    parts["training.dataloading.nnunet_dataset"] = {"infer_dataset_class": lambda folder: dataset_class}
    for name, members in parts.items():
        monkeypatch.setitem(sys.modules, f"nnunetv2.{name}", SimpleNamespace(**members))
    plans = SimpleNamespace(get_configuration=lambda stage: SimpleNamespace(data_identifier="data"))
    fold = tmp_path / "model" / "fold_0"
    fold.mkdir(parents=True)
    trainer: Any = SimpleNamespace(
        preprocessed_dataset_folder_base=str(tmp_path),
        plans_manager=plans,
        output_folder=str(fold),
        configuration_manager=None,
        dataset_json={},
    )
    half = tmp_path / "staging" / "3d_high" / "sub.001.b2nd"
    half.parent.mkdir(parents=True)
    half.write_text("half")
    for case in ("sub", "sub.001"):
        validation._export_next_stage(trainer, f"of {case}", {}, case, tmp_path / "staging", "3d_high", 1)
        left = {path.name: path.read_text() for path in (tmp_path / "model" / "predicted_next_stage" / "3d_high").iterdir()}
        assert left == ({"sub.b2nd": "of sub"} if case == "sub" else {"sub.b2nd": "of sub", "sub.001.b2nd": "of sub.001"})
