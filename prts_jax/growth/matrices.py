"""The matrices of a learned map: arrays by name, known by their digest, kept in a file."""

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prts_jax.errors import UserError

Arrays = Mapping[str, Any]
"""Name of a matrix (`prts_jax.growth.dense`) → float32 array `[target size, source size]`."""


LEARNING = "learning"
"""Entry of a file for the cost of learning, as the bytes of a JSON object."""

COST, UNKNOWN, COUNTED = "cost", "unknown", "counted before"
"""Key of a cost without numbers, and its values."""


@dataclass(frozen=True)
class Matrices:
    """The matrices of a map; two are equal if their values are.

    A map's JSON holds digest and shapes; the arrays are in a file beside the lineage.

    Attributes:
      digest: SHA-256 of names, shapes and values; "" stands for the initial value, which is a
        function of the map (`prts_jax.growth.dense.initial`) and needs no file.
      shapes: name → (target size, source size).
      arrays: the values; None where only the JSON was read.
      learning: cost of learning them, for a growth that uses them again: {"run": workdir of the run
        that learned them, "tokens", "flops", "flops_6nd", …}. A file of an older version has
        {"run": the file, "cost": "unknown"}; {} where nothing was learned.
    """

    digest: str = ""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    arrays: Arrays | None = field(default=None, compare=False, repr=False)
    learning: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, arrays: Arrays, learning: Mapping[str, Any] | None = None) -> "Matrices":
        """Takes arrays as they are, float32, and the cost of learning them."""
        kept = {name: np.ascontiguousarray(arrays[name], "<f4") for name in sorted(arrays)}
        shapes = {name: tuple(array.shape) for name, array in kept.items()}
        digest = hashlib.sha256(json.dumps(shapes, sort_keys=True).encode())
        for array in kept.values():
            digest.update(array.tobytes())
        return cls(digest.hexdigest(), shapes, kept, dict(learning or {}))

    def to_json(self) -> dict[str, Any]:
        """Returns digest and shapes."""
        return {"digest": self.digest, "shapes": {n: list(s) for n, s in self.shapes.items()}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Matrices":
        """Reads what `to_json` returned; the arrays are not in it.

        Raises:
          KeyError, TypeError, ValueError: it is something else.
        """
        shapes = {str(name): tuple(map(int, shape)) for name, shape in values["shapes"].items()}
        return cls(str(values["digest"]), shapes)

    def to_bytes(self) -> bytes:
        """Returns the arrays and their cost as the bytes of a NumPy archive (.npz)."""
        if self.arrays is None:
            raise ValueError(f"the arrays of {self.digest[:12]} were not read")
        file, entries = io.BytesIO(), dict(self.arrays)
        if self.learning:
            entries[LEARNING] = np.frombuffer(json.dumps(self.learning).encode(), np.uint8)
        np.savez(file, **entries)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "Matrices":
        """Reads what `to_bytes` returned from a file, which messages name.

        Raises:
          UserError: it is no such archive, or holds something else than finite float32 values.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as e:
            raise UserError(
                f"{where}: holds no matrices ({type(e).__name__}); give the .npz file in the "
                "folder matrices of a checkpoint that grew by the operator 'learned'"
            ) from e
        learning = _read_learning(arrays.pop(LEARNING, None), where)
        for name, array in arrays.items():
            if array.dtype != np.float32:
                raise UserError(f"{where}: {name} is {array.dtype}, not float32; use another file")
            if not np.isfinite(array).all():
                raise UserError(f"{where}: {name} has values that are no numbers; use another file")
        return cls.of(arrays, learning)


def _read_learning(entry: np.ndarray | None, where: str) -> dict[str, Any]:
    """Reads the cost of learning; a file of an older version has none."""
    if entry is None:
        return {"run": where, COST: UNKNOWN}
    try:
        learning = json.loads(entry.tobytes())
        numbers = [] if COST in learning else ["tokens", "flops", "flops_6nd"]
        intact = isinstance(learning["run"], str) and all(
            isinstance(learning[key], int | float) and 0 <= learning[key] < math.inf
            for key in numbers
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise UserError(f"{where}: the cost of learning is damaged; use another copy of the file")
    return dict(learning)
