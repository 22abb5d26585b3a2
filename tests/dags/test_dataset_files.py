"""Dataset files: what they may say, and how a wrong one is reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_nnunet.pipelines.dataset_config import DatasetConfigError, load_config, load_folder
from devtools.schema_docs import reference

PROJECT = Path(__file__).resolve().parents[2]
GOOD = "dataset: {id: 4, name: Hippocampus, source: /data}\n"


def write(folder: Path, text: str, name: str = "a.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "train:\n  epoch: 3\n", r"a\.yaml:3: train\.epoch: unknown field; did you mean 'epochs'\?"),
        (GOOD + "train:\n  epochs: 0\n", r"a\.yaml:3: train\.epochs=0: must be 1 or more"),
        (GOOD + "preprocess: {folds: many}\n", r"a\.yaml:2: preprocess\.folds='many': Input should be a valid integer"),
        (GOOD + "train: {folds: [7]}\n", r"a\.yaml:2: train\.folds=\[7\]: the split has folds 0 to 4; raise preprocess\.folds"),
        (GOOD + "preprocess: {configurations: [3d_cascade_fullres]}\n", r"starts from 3d_lowres; add 3d_lowres"),
        (GOOD + "predict: {cases: somewhere}\n", r"predict\.cases='somewhere': must be holdout, imagesTs, none or an absolute"),
        (GOOD + "predict: {dicom_seg: true}\n", r"a\.yaml:2: predict\.dicom_seg=True: predict\.cases must be a folder of DICOM"),
        (GOOD + "predict: {segment_codes: {head: [1]}}\n", r"a\.yaml:2: predict\.segment_codes=.*such as"),
        (GOOD + "resources: {cpus: -1}\n", r"resources\.cpus=-1: must be 0 or more"),
        ("dataset: {id: 0, name: A, source: /data}\n", r"dataset\.id=0: must be between 1 and 99999"),
        ("dataset: {id: 4, name: 'a b', source: /data}\n", r"dataset\.name='a b': use letters, digits"),
        ("dataset: {id: 4, name: A}\n", r"a\.yaml:1: dataset\.source: is missing; add it"),
        ("shedule: '@daily'\n" + GOOD, r"a\.yaml:1: shedule: unknown field; did you mean 'schedule'"),
        (GOOD + "train: {epochs: -3}\n", r"a\.yaml:2: train\.epochs=-3: must be 1 or more"),
        (GOOD + "train: {trainer: nnUNetTrainerr}\n", r"a\.yaml:2: train\.trainer='nnUNetTrainerr': no such class .*did you mean"),
        (GOOD + "train: {folds: [0, 1, 0]}\n", r"a\.yaml:2: train\.folds=\[0, 1, 0\]: names a fold twice"),
        (GOOD + "train: {pretrained: models/a.pth}\n", r"a\.yaml:2: train\.pretrained='models/a\.pth': must be a model id or an absolute"),
        (
            GOOD + "train: {pretrained: '/m/{{ ds }}'}\n",
            r"a\.yaml:2: train\.pretrained='/m/\{\{ ds \}\}': must be an absolute path, and no",
        ),
        (
            GOOD + "preprocess: {planner: ExperimentPlaner}\n",
            r"a\.yaml:2: preprocess\.planner='ExperimentPlaner': no such class in nnU-Net",
        ),
        (GOOD + "preprocess: {configurations: [3d_fulres]}\n", r"a\.yaml:2: preprocess\.configurations=.*did you mean '3d_fullres'"),
        (
            GOOD + "preprocess: {configurations: [x], custom_configurations: {x: {inherits_from: 3d}}}\n",
            r"a\.yaml:2: preprocess\.custom_configurations\['x'\]: inherits_from='3d' is not a configuration; name one of 2d",
        ),
        (
            GOOD + "preprocess: {configurations: [x], custom_configurations: {x: {inherits_from: 2d, batchsize: 2}}}\n",
            r"a\.yaml:2: preprocess\.custom_configurations\['x'\]: unknown field 'batchsize'; did you mean 'batch_size'",
        ),
        (GOOD + "predict: {output: results}\n", r"a\.yaml:2: predict\.output='results': must be an absolute path, and not a template"),
        (GOOD + "predict: {output: '/out/{{ ds }}'}\n", r"a\.yaml:2: predict\.output='/out/\{\{ ds \}\}': must be .* not a template"),
        ("dataset: {id: 4, name: A, source: data/Task04}\n", r"a\.yaml:1: dataset\.source='data/Task04': must be an absolute path"),
        (GOOD + "evaluate: {tolerance_mm: -1}\n", r"a\.yaml:2: evaluate\.tolerance_mm=-1(\.0)?: must be 0 mm or more"),
        (GOOD + "evaluate: {tolerance_mm: {tumour: -1}}\n", r"a\.yaml:2: evaluate\.tolerance_mm=.*must be 0 mm or more"),
        (
            "dataset: {id: 4, name: A, source: /d, label_names: {background: 0, liver: 1}}\nevaluate: {tolerance_mm: {livr: 1}}\n",
            r"a\.yaml:2: evaluate\.tolerance_mm='livr': is no label of dataset\.label_names; name one of liver",
        ),
        ("- 1\n", r"must be a mapping"),
        ("dataset: [\n", r"not valid YAML"),
    ],
)
def test_a_wrong_file_is_named_with_line_field_and_mend(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DatasetConfigError, match=message):
        load_config(write(tmp_path, text))


def test_all_faults_of_a_file_are_in_one_report(tmp_path: Path) -> None:
    with pytest.raises(DatasetConfigError) as error:
        load_config(write(tmp_path, GOOD + "train: {epoch: 3}\nselect: {promoted: always}\n"))
    assert "train.epoch" in str(error.value)
    assert "select.promoted" in str(error.value)


def test_a_broken_file_hides_no_good_one(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "good.yaml")
    write(tmp_path, GOOD + "x: 1\n", "broken.yaml")
    loaded = load_folder(tmp_path)
    assert list(loaded.configs) == ["good.yaml"]
    assert list(loaded.errors) == ["broken.yaml"]


def test_files_are_read_whatever_their_ending(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "good.yml")
    write(tmp_path, GOOD.replace("4", "5") + "dag_id: other\n", "good.YAML")
    loaded = load_folder(tmp_path)
    assert {name: config.dag_id for name, config in loaded.configs.items()} == {"good.yml": "nnunet_good", "good.YAML": "other"}


def test_one_number_cannot_mean_two_datasets(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "a.yaml")
    write(tmp_path, GOOD.replace("Hippocampus", "Liver"), "b.yaml")
    write(tmp_path, GOOD + "train: {epochs: 5}\n", "c.yaml")
    loaded = load_folder(tmp_path)
    assert list(loaded.configs) == ["a.yaml", "c.yaml"], "two recipes for one dataset are fine"
    assert "dataset.id=4: a.yaml uses it for 'Hippocampus'" in loaded.errors["b.yaml"]


def test_two_files_cannot_make_one_dag(tmp_path: Path) -> None:
    write(tmp_path, GOOD + "dag_id: same\n", "a.yaml")
    write(tmp_path, GOOD + "dag_id: same\n", "b.yaml")
    assert "a.yaml has it already" in load_folder(tmp_path).errors["b.yaml"]


def test_the_reference_is_made_from_the_schema() -> None:
    assert (PROJECT / "include/datasets/README.md").read_text() == reference()
