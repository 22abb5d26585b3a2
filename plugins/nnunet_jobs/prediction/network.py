"""Holds one stage in memory, its network and the folds' weights, and turns image files into logits."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import DataError
from nnunet_jobs.contract.storage.files import read_json
from nnunet_jobs.prediction.foreign import run_case
from nnunet_jobs.prediction.model import SelectedModel, Stage
from nnunet_jobs.prediction.sliding_window import predict_logits
from nnunet_jobs.training import checkpoint as checkpoints

log = logging.getLogger("nnunet_jobs")

# Voxels of windows given to the network at once in fast mode. Measured on a CPU: slices of 48 x 64 take 0.55 of the time in
# groups of 16, 128 x 128 gain nothing, and from 256 x 256 or 64 x 64 x 64 on groups are slower. A GPU's number is a guess.
_CPU_VOXELS, _GPU_VOXELS, _MOST_TILES = 1 << 16, 1 << 22, 64

# A slice's layers are too small to be shared among cores: on 2 cores, two slices at a time with a core each take 0.8 of the time of
# one after the other on both (56 x 40 to 256 x 256; 512 x 512 gain nothing), and do not wait for each other if cores are busy.
# Volumes use all cores anyway and would need their memory several times. More than 2 cores were not measured.
_MOST_LANES = 8


class StageNetwork:
    """Holds a stage's folds, loaded once. Preprocessing may run in other threads; only one thread may call :meth:`logits`.

    Attributes:
        plans_manager: nnU-Net's own object for the plans of this stage.
        configuration_manager: nnU-Net's own object for the configuration of this stage.
        label_manager: nnU-Net's own object for the labels of this stage.
        dataset_json: Content of ``dataset.json`` of this stage's model.
    """

    def __init__(self, model: SelectedModel, stage: Stage, *, device: Any, cpus: int, fast: Collection[str] = ()) -> None:
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        for name in ("plans.json", "dataset.json"):
            model.verify(stage.folder / name)
        self.stage = stage
        self.dataset_json: dict[str, Any] = read_json(stage.folder / "dataset.json")
        self.plans_manager = PlansManager(read_json(stage.folder / "plans.json"))
        self.configuration_manager = self.plans_manager.get_configuration(stage.configuration)
        self.label_manager = self.plans_manager.get_label_manager(self.dataset_json)
        self._device = device
        self._weights: list[dict[str, Any]] = []
        self._mirror_axes: tuple[int, ...] | None = None
        for path in stage.checkpoints():
            model.verify(path)
            checkpoint = _load(path)
            if not self._weights:
                axes = checkpoint.get("inference_allowed_mirroring_axes")
                self._mirror_axes = None if axes is None else tuple(int(axis) for axis in axes)
            self._weights.append(checkpoint["network_weights"])
        self._network = self._build().to(device)
        self._network.load_state_dict(self._weights[0])
        self._network.eval()
        self._half = "half" in fast and device.type == "cuda"
        if self._half:
            self._network.half()
        self._tiles = _tiles(self.configuration_manager.patch_size, device) if "tiles" in fast else 1
        self._threads = max(1, cpus)
        slices = device.type == "cpu" and len(self.configuration_manager.patch_size) == 2
        self._lanes = min(self._threads, _MOST_LANES) if slices and "compile" not in fast else 1
        self._compiled: Any = None
        if "compile" in fast:
            import torch

            self._compiled = torch.compile(self._network)

    @property
    def channels(self) -> int:
        """Return the number of images that a case must have."""
        return len(self.channel_names)

    @property
    def channel_names(self) -> list[str]:
        """Return the channels' names in order."""
        named = self.dataset_json.get("channel_names") or self.dataset_json["modality"]
        return [str(named[key]) for key in sorted(named, key=int)]

    @property
    def file_ending(self) -> str:
        """Return the ending of images and segmentations, with the dot."""
        return str(self.dataset_json["file_ending"])

    def reader_writer(self) -> Any:
        """Return a new reader and writer of the kind that the plans name."""
        return self.plans_manager.image_reader_writer_class()

    def preprocess(
        self, images: tuple[Path, ...], *, previous: Path | None, on_image: Callable[[Any], None] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Read and preprocess one case.

        Args:
            previous: The previous stage's segmentation file, for a cascade.
            on_image: Called with the image as it was read, (channel, z, y, x).

        Returns:
            Float32 tensor (channel, x, y, z), and nnU-Net's properties of the case.
        """
        import numpy as np
        import torch

        preprocessor = self.configuration_manager.preprocessor_class(verbose=False)
        data, seg, properties = run_case(
            preprocessor,
            [str(path) for path in images],
            None if previous is None else str(previous),
            self.plans_manager,
            self.configuration_manager,
            self.dataset_json,
            on_image=on_image,
        )
        if previous is not None:
            from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

            data = np.vstack((data, convert_labelmap_to_one_hot(seg[0], self.label_manager.foreground_labels, data.dtype)))
        return torch.from_numpy(data).to(dtype=torch.float32, memory_format=torch.contiguous_format), properties

    @property
    def memory_bytes(self) -> int:
        """Return the bytes that the weights of all folds take, on the CPU and on the device together."""
        tensors = [*self._network.state_dict().values(), *(tensor for weights in self._weights for tensor in weights.values())]
        return sum(int(tensor.numel()) * int(tensor.element_size()) for tensor in tensors)

    def logits(
        self,
        data: Any,
        *,
        mirroring: bool,
        step_size: float,
        on_tile: Callable[[], None],
        on_fold: Callable[[Any], None] | None = None,
    ) -> Any:
        """Compute the logits of one preprocessed case, the mean over the folds: half precision, (head, x, y, z), on the CPU.

        Args:
            on_fold: Called with each fold's own logits; it must neither change nor keep them.
        """
        import torch

        total: Any = None
        torch.set_num_threads(self._threads)  # of the calling thread
        with torch.inference_mode():
            for weights in self._weights:
                if len(self._weights) > 1:
                    self._network.load_state_dict(weights)
                prediction = predict_logits(
                    self._forward,
                    data,
                    heads=self.label_manager.num_segmentation_heads,
                    patch=self.configuration_manager.patch_size,
                    step_size=step_size,
                    mirror_axes=self._mirror_axes if mirroring else None,
                    device=self._device,
                    on_tile=on_tile,
                    tiles=self._tiles,
                    half=self._half,
                    lanes=self._lanes,
                )
                if on_fold is not None:
                    on_fold(prediction)
                # in place, in half precision, as nnU-Net does, so that the bytes agree
                total = prediction if total is None else total.add_(prediction)
            if len(self._weights) > 1:
                total /= len(self._weights)
        return total

    def _forward(self, windows: Any) -> Any:
        """Run the network, compiled if requested and possible: compiling needs a C++ compiler, and with CUDA also Triton."""
        if self._compiled is not None:
            from torch._dynamo.exc import TorchDynamoException

            try:
                return self._compiled(windows)
            except TorchDynamoException as error:
                log.warning("fast: the network cannot be compiled here and runs as it is: %s", str(error).splitlines()[0])
                self._compiled = None
        return self._network(windows)

    def _build(self) -> Any:
        from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

        inputs = determine_num_input_channels(self.plans_manager, self.configuration_manager, self.dataset_json)
        heads = self.label_manager.num_segmentation_heads
        configuration = self.configuration_manager
        if self.stage.trainer == "nnUNetTrainer":
            # the same as nnUNetTrainer.build_network_architecture; importing that class would import all of training
            from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

            return get_network_from_plans(
                configuration.network_arch_class_name,
                configuration.network_arch_init_kwargs,
                configuration.network_arch_init_kwargs_req_import,
                inputs,
                heads,
                allow_init=False,
                deep_supervision=False,
            )
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        build = recursive_find_trainer_class_by_name(self.stage.trainer).build_network_architecture
        if "plans_manager" in inspect.signature(build).parameters:
            return build(self.plans_manager, configuration, inputs, heads, enable_deep_supervision=False)
        return build(
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
            inputs,
            heads,
            enable_deep_supervision=False,
        )


def _tiles(patch: Sequence[int], device: Any) -> int:
    """Return how many windows to give to the network at once: about the voxels of a usual training batch, more on a GPU."""
    voxels = _GPU_VOXELS if device.type == "cuda" else _CPU_VOXELS
    return max(1, min(_MOST_TILES, voxels // math.prod(int(size) for size in patch)))


def _load(path: Path) -> dict[str, Any]:
    try:
        return checkpoints.load(path)
    except checkpoints.UnreadableCheckpoint:
        raise  # the storage or the memory of this host, not the file
    except checkpoints.UnsafeCheckpoint as error:
        raise DataError(f"{error}; restore the file or train the fold again") from error
