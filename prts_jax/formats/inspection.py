"""What a model in any format holds, without reading its weights; and what two of them differ in."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from prts_jax.checkpoint.layout import is_complete
from prts_jax.config import to_dict
from prts_jax.formats import huggingface, litgpt, safetensors_files
from prts_jax.formats.convert import open_checkpoint
from prts_jax.formats.model_source import ModelSource, TensorShape, pieces
from prts_jax.model.architecture import declare
from prts_jax.paths import as_path


def format_of(path: str) -> str:
    """Returns "orbax", "hf", "litgpt" or "safetensors" (a bare file), by what lies there.

    What is none of the others is taken for a checkpoint of ours, whose reader says what it lacks.
    """
    root = as_path(path)
    if path.endswith((".pth", ".pt", ".ckpt")) and root.is_file():
        return "litgpt"
    if path.endswith(".safetensors") and root.is_file():
        return "safetensors"
    if not is_complete(str(root)) and root.is_dir():
        if (root / litgpt.WEIGHTS).exists():
            return "litgpt"
        if (root / huggingface.CONFIG).exists() and _has_weights(path):
            return "hf"
    return "orbax"


def _has_weights(path: str) -> bool:
    names = (safetensors_files.SINGLE, safetensors_files.INDEX)
    return any((as_path(path) / name).exists() for name in names)


def open_any(path: str) -> ModelSource:
    """Opens a whole model of any format, without reading its weights.

    Raises:
      UserError: it is damaged, incomplete, or nothing that is known.
    """
    kind = format_of(path)
    if kind == "hf":
        return huggingface.open_model(path)
    return litgpt.open_model(path) if kind == "litgpt" else open_checkpoint(path)


def tensors_of(path: str) -> tuple[str, Mapping[str, TensorShape]]:
    """Returns the format and name → tensor of what need not be a whole Llama.

    Raises:
      UserError: it is damaged or nothing that is known.
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
    """What two models differ in.

    Attributes:
      config: dotted key → (value in one, value in the other).
      only: path → 0 or 1, of leaves that one of them has alone.
      shapes: path → (shape in one, shape in the other).
      values: path → the layers whose values differ; () of a leaf without layers.
      compared: leaves of which values were compared.
    """

    config: dict[str, tuple[Any, Any]]
    only: dict[str, int]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    values: dict[str, tuple[int, ...]]
    compared: int

    @property
    def same(self) -> bool:
        """Whether they differ in nothing."""
        return not (self.config or self.only or self.shapes or self.values)

    def to_json(self) -> dict[str, Any]:
        """Returns the differences as JSON would hold them."""
        return {"same": self.same, **dataclasses.asdict(self)}


def compare(one: ModelSource, other: ModelSource) -> Differences:
    """Says what two models differ in: shape, leaves, values.

    Values of two checkpoints of ours are compared by their digests; of anything else they are
    read, a tensor at a time, and compared in float32.

    Args:
      one: a model.
      other: a model.
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
    for path, layer in pieces(one.model):
        if path in same_shape and _differ(one, other, path, layer):
            values.setdefault(path, [])
            values[path] += [] if layer is None else [layer]
    listed = {path: tuple(layers) for path, layers in values.items()}
    return Differences(config, only, shapes, listed, len(same_shape))


def _flat_config(model: ModelSource) -> dict[str, Any]:
    """The whole run's config of a checkpoint of ours is more than others can have: its model."""
    return {f"model.{name}": value for name, value in to_dict(model.model).items()}


def _differ(one: ModelSource, other: ModelSource, path: str, layer: int | None) -> bool:
    if one.lineage is not None and other.lineage is not None:
        place = layer or 0
        return one.lineage.digests[path][place] != other.lineage.digests[path][place]
    first, second = (model.read(path, layer).astype("float32") for model in (one, other))
    return first.tobytes() != second.tobytes()
