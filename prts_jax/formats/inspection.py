"""Inspection of a model in any format without reading its weights, and comparison of two."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from prts_jax.checkpoint.layout import is_complete
from prts_jax.config import to_dict
from prts_jax.formats import config_json, huggingface, litgpt, safetensors_files
from prts_jax.formats.checkpoint_source import open_checkpoint
from prts_jax.formats.model_source import ModelSource, TensorShape, leaf_layers, refuse_meta
from prts_jax.model.architecture import declare
from prts_jax.paths import as_path


def format_of(path: str) -> str:
    """Returns the format of a path: "orbax", "hf", "litgpt" or "safetensors" (a single file).

    Anything unknown counts as "orbax", whose reader reports which file is missing.

    Raises:
      UserError: the folder is in Meta's format.
    """
    root = as_path(path)
    if path.endswith((".pth", ".pt", ".ckpt")) and root.is_file():
        return "litgpt"
    if path.endswith(".safetensors") and root.is_file():
        return "safetensors"
    if not is_complete(str(root)) and root.is_dir():
        if (root / litgpt.WEIGHTS).exists():
            return "litgpt"
        weights = (root / safetensors_files.SINGLE, root / safetensors_files.INDEX)
        if (root / config_json.CONFIG).exists() and any(file.exists() for file in weights):
            return "hf"
        refuse_meta(path)
    return "orbax"


def open_any(path: str) -> ModelSource:
    """Opens a whole model of any format, without reading its weights.

    Raises:
      UserError: the model is damaged, incomplete or of an unknown format.
    """
    kind = format_of(path)
    if kind == "hf":
        return huggingface.open_model(path)
    return litgpt.open_model(path) if kind == "litgpt" else open_checkpoint(path)


def tensors_of(path: str) -> tuple[str, Mapping[str, TensorShape]]:
    """Returns the format and name → tensor; the model may be incomplete or of another family.

    Raises:
      UserError: the files are damaged or of an unknown format.
    """
    kind = format_of(path)
    if kind == "litgpt":
        return kind, litgpt.describe(path)
    if kind == "orbax":
        return kind, open_checkpoint(path).tensors
    read = safetensors_files.open_folder if kind == "hf" else safetensors_files.read_header
    stored = read(str(as_path(path)))
    return kind, {
        name: TensorShape(tensor.shape, tensor.dtype.name, tensor.nbytes)
        for name, tensor in stored.items()
    }


@dataclasses.dataclass(frozen=True)
class Differences:
    """Differences between two models.

    Attributes:
      config: dotted key → (value in the first, value in the second).
      only: path → index (0 or 1) of the only model that has the leaf.
      shapes: path → (shape in the first, shape in the second).
      values: path → layers whose values differ; () for a leaf without layers.
      compared: number of leaves whose values were compared.
    """

    config: dict[str, tuple[Any, Any]]
    only: dict[str, int]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    values: dict[str, tuple[int, ...]]
    compared: int

    @property
    def same(self) -> bool:
        """Whether the models are equal."""
        return not (self.config or self.only or self.shapes or self.values)

    def to_json(self) -> dict[str, Any]:
        """Returns the differences as a JSON object."""
        return {"same": self.same, **dataclasses.asdict(self)}


def compare(one: ModelSource, other: ModelSource) -> Differences:
    """Compares the configs, leaves, shapes and values of two models.

    Two checkpoints of prts_jax are compared by digest; other values are read one tensor at a time
    and compared in float32.
    """
    ours, theirs = _flat_config(one), _flat_config(other)
    config = {
        key: (ours.get(key), theirs.get(key))
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    }
    first, second = declare(one.model), declare(other.model)
    only = {path: int(path in second) for path in sorted(first.keys() ^ second.keys())}
    shapes = {
        path: (leaf.shape, second[path].shape)
        for path, leaf in first.items()
        if path in second and leaf.shape != second[path].shape
    }
    values: dict[str, list[int]] = {}
    same_shape = [path for path in first if path in second and path not in shapes]
    for path, layer in leaf_layers(one.model):
        if path in same_shape and _differ(one, other, path, layer):
            values.setdefault(path, [])
            values[path] += [] if layer is None else [layer]
    listed = {path: tuple(layers) for path, layers in values.items()}
    return Differences(config, only, shapes, listed, len(same_shape))


def _flat_config(model: ModelSource) -> dict[str, Any]:
    """Returns the model's config by dotted key; other formats store no other run config."""
    return {f"model.{name}": value for name, value in to_dict(model.model).items()}


def _differ(one: ModelSource, other: ModelSource, path: str, layer: int | None) -> bool:
    if one.lineage is not None and other.lineage is not None:
        index = layer or 0
        return one.lineage.digests[path][index] != other.lineage.digests[path][index]
    first, second = (model.read(path, layer).astype("float32") for model in (one, other))
    return first.tobytes() != second.tobytes()
