"""Parts of every conversion: tensors moved in the target's dtype, the tokenizer, the report."""

import dataclasses
import math
import resource
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from prts_jax.checkpoint.commit import check_space
from prts_jax.checkpoint.tokenizer import check_tokenizer, holds_tokenizer
from prts_jax.config import ModelConfig
from prts_jax.errors import UserError
from prts_jax.formats import safetensors_files
from prts_jax.formats.model_source import ModelSource, leaf_layers
from prts_jax.model.architecture import declare
from prts_jax.special_ids import SpecialIds, of_tokenizer, other_forms

Progress = Callable[[int, int], None]
"""Takes the bytes written so far and the total."""


@dataclass(frozen=True)
class ConversionReport:
    """The result of a conversion.

    Attributes:
      dtype: of the weights written; the most frequent one if they differ.
      dtypes: dtype → number of tensors written in it.
      tensors: number of tensors written; each layer of a stacked leaf counts.
      tokenizer: names of the tokenizer files copied.
    """

    source_format: str
    target_format: str
    dtype: str
    dtypes: dict[str, int]
    tensors: int
    bytes_written: int
    seconds: float
    peak_rss_bytes: int
    tokenizer: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the report as a JSON object."""
        return dataclasses.asdict(self) | {"tokenizer": list(self.tokenizer)}


class Mover:
    """Checks free space, reads tensors in the target's dtype and reports progress."""

    def __init__(
        self,
        target: str,
        model: ModelConfig,
        dtype: Callable[[str, int | None], str],
        progress: Progress | None,
    ) -> None:
        self.dtype, self._progress = dtype, progress
        declarations, leaves = declare(model), leaf_layers(model)
        self._dtypes = Counter(dtype(*leaf) for leaf in leaves)
        self._total = sum(
            math.prod(declarations[path].layer_shape)
            * safetensors_files.dtype_named(dtype(path, layer)).itemsize
            for path, layer in leaves
        )
        self.done = self.tensors = 0
        check_space(target, self._total)

    def read(self, source: ModelSource, path: str, layer: int | None) -> np.ndarray:
        """Reads one layer of a leaf, rounded to the target's dtype.

        Raises:
          UserError: float16 cannot hold its values.
        """
        values = source.read(path, layer)
        dtype = self.dtype(path, layer)
        target = safetensors_files.dtype_named(dtype)
        with np.errstate(over="ignore"):  # reported below, with the leaf's name
            rounded = np.ascontiguousarray(values, target)
        overflows = dtype == "float16" and not np.isfinite(rounded).all()
        if overflows and np.isfinite(values.astype(np.float32)).all():
            raise UserError(
                f"{source.path}: {path}: holds values beyond the range of float16; choose "
                "--dtype=bfloat16 or float32"
            )
        return rounded

    def wrote(self, count: int) -> None:
        """Counts a tensor of `count` bytes as written."""
        self.done += count
        self.tensors += 1
        if self._progress is not None:
            self._progress(self.done, self._total)

    def report(
        self, source: ModelSource, target_format: str, began: float, tokenizer: list[str]
    ) -> ConversionReport:
        """Returns the report of a conversion that began at `time.monotonic() == began`."""
        return ConversionReport(
            source_format=source.format,
            target_format=target_format,
            dtype=self._dtypes.most_common(1)[0][0],
            dtypes=dict(self._dtypes),
            tensors=self.tensors,
            bytes_written=self.done,
            seconds=time.monotonic() - began,
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            tokenizer=tuple(tokenizer),
        )


def check_carried(source: ModelSource, tokenizer: str) -> None:
    """Checks the files of a checkpoint's tokenizer before they are copied."""
    if source.lineage is not None and not tokenizer:
        check_tokenizer(source.path, source.lineage)


def with_tokenizer(ids: SpecialIds, tokenizer: str) -> SpecialIds:
    """Adds the ids of the tokenizer that the user names.

    Raises:
      UserError: there is none.
    """
    if tokenizer and not holds_tokenizer(tokenizer):
        none = "has no tokenizer.json or tokenizer.model; name their folder or one of them"
        raise UserError(f"--tokenizer={tokenizer}: {other_forms(tokenizer) or none}")
    return ids.or_else(of_tokenizer(tokenizer)) if tokenizer else ids
