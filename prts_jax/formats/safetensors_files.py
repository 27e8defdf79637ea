"""Safetensors files on local disk and gs://, read and written tensor by tensor.

The safetensors library writes whole files from memory and reads only local ones. A file holds
eight bytes with the length of the JSON header, the header (name → dtype, shape and offsets into
the values), and the values.
Source: https://huggingface.co/docs/safetensors, section "Format".
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from prts_jax.errors import UserError, escaped, storage_error
from prts_jax.feed import prefetch
from prts_jax.paths import as_path
from prts_jax.special_ids import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
LONGEST_HEADER = 100_000_000
"""Largest header in bytes, the library's own limit; a larger length means damage."""

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""Name in the format → dtype, for the dtypes of weights."""

_OTHERS = {
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""Dtypes of quantized weights and of buffers."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """The file, shape and dtype of a tensor, and the offset of its values in the file, in bytes."""

    file: str
    shape: tuple[int, ...]
    dtype: np.dtype
    start: int

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Returns the values.

        Raises:
          UserError: the file is truncated.
        """
        with as_path(self.file).open("rb") as file:
            file.seek(self.start)
            content = file.read(self.nbytes)
        if len(content) < self.nbytes:
            raise UserError(f"{self.file}: is cut short; fetch it again")
        return np.frombuffer(content, self.dtype).reshape(self.shape)


def dtype_named(name: str) -> np.dtype:
    """Returns the NumPy dtype of a name; also knows "bfloat16"."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def open_folder(folder: str) -> dict[str, StoredTensor]:
    """Returns name → tensor of a model's folder with one file, or several with an index.

    Reads only headers. As in transformers, `model.safetensors` comes before an index.

    Raises:
      UserError: a file is missing, a header is damaged, a tensor is in none of the files of the
        index, or a tensor is in two of them.
    """
    root = as_path(folder)
    if (root / SINGLE).is_file():
        return read_header(str(root / SINGLE))
    if not (root / INDEX).exists():
        others = any(
            (root / name).exists() for name in ("pytorch_model.bin", "pytorch_model.bin.index.json")
        )
        advice = (
            "load it in transformers and save it again with save_pretrained"
            if others
            else "name the folder of a model saved as safetensors"
        )
        raise UserError(f"{folder}: holds neither {SINGLE} nor {INDEX}; {advice}")
    where = read_json(root / INDEX).get("weight_map")
    if not isinstance(where, dict) or not where or not all(map(_is_name, where.values())):
        raise UserError(f"{root / INDEX}: weight_map names no files beside it; fetch it again")
    files = sorted({str(root / name) for name in where.values()})
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in read_header(file).items():
            if name in tensors:
                raise UserError(f"{file}: {name}: is in {tensors[name].file} too; remove one")
            tensors[name] = tensor
    missing = sorted(where.keys() - tensors.keys())
    if missing:
        raise UserError(
            f"{root / INDEX}: names {missing[0]}, which {where[missing[0]]} does not hold; fetch "
            "both again"
        )
    return tensors


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and "/" not in value and escaped(value) == value


def read_header(path: str) -> dict[str, StoredTensor]:
    """Returns name → tensor of one file.

    Raises:
      UserError: the file is missing, its header is damaged, or it is truncated.
    """
    try:
        size = as_path(path).stat().length
        with as_path(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, LONGEST_HEADER):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length), object_pairs_hook=_without_duplicates)
        header.pop("__metadata__", None)
        tensors = {name: _tensor(path, 8 + length, entry) for name, entry in header.items()}
    except FileNotFoundError as error:
        raise UserError(f"{path}: does not exist; fetch what is missing of the model") from error
    except OSError as error:
        raise storage_error(f"{path}: cannot be read", error) from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: is no whole safetensors file ({error}); fetch it again"
        ) from error
    _check_layout(path, 8 + length, size, tensors)
    return tensors


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = Counter(name for name, _ in pairs)
    if len(names) < len(pairs):
        raise ValueError(f"{names.most_common(1)[0][0]!r:.80} is stated twice")
    return dict(pairs)


def _check_layout(path: str, start: int, size: int, tensors: Mapping[str, StoredTensor]) -> None:
    """Raises UserError unless the tensors fill the file from `start`: no gap, overlap or rest."""
    for name, tensor in sorted(tensors.items(), key=lambda t: (t[1].start, t[1].nbytes)):
        if tensor.start + tensor.nbytes > size:
            raise UserError(f"{path}: is cut short: {name} lies beyond its end; fetch it again")
        if tensor.start != start:
            kind = "overlaps the tensor" if tensor.start < start else "leaves a gap to the tensor"
            raise UserError(f"{path}: is damaged: {name} {kind} before it; fetch it again")
        start += tensor.nbytes
    if start != size:
        raise UserError(
            f"{path}: is damaged: {size - start} bytes follow its tensors; fetch it again"
        )


def _tensor(path: str, begin: int, entry: Mapping[str, Any]) -> StoredTensor:
    dtype = (DTYPES | _OTHERS).get(str(entry["dtype"]))
    if dtype is None:
        raise ValueError(f"dtype {entry['dtype']!r:.80} is unknown")
    shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
    if any(type(size) is not int or size < 0 for size in (*shape, start, stop)):
        raise ValueError("a size or an offset is no natural number")
    tensor = StoredTensor(path, shape, dtype, begin + start)
    if stop - start != tensor.nbytes:
        raise ValueError(f"offsets {start} to {stop} do not hold shape {list(shape)}")
    return tensor


def check_dtype(name: str, tensor: StoredTensor) -> None:
    """Checks that a tensor holds plain weights.

    Raises:
      UserError: it is quantized.
    """
    if tensor.dtype not in _NAMES:
        raise UserError(
            f"{tensor.file}: {name}: is {tensor.dtype.name}, and {', '.join(DTYPES)} are read; the "
            "model is quantized: save it in bfloat16 or float32 with the library that wrote it"
        )


@dataclass(frozen=True)
class NewTensor:
    """A tensor to write; `make` returns its values, once, shortly before they are written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_folder(
    folder: str, tensors: Sequence[NewTensor], shard_bytes: int, wrote: Callable[[int], None]
) -> None:
    """Writes tensors to `model.safetensors`, or to several files with an index.

    A file has at most `shard_bytes` of values; a larger tensor gets its own. `wrote` is called with
    the bytes of each tensor written.
    """
    shards: list[list[NewTensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.nbytes for t in shards[-1]) + tensor.nbytes > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    names = [SINGLE]
    if len(shards) > 1:
        count = len(shards)
        names = [f"model-{at:05d}-of-{count:05d}.safetensors" for at in range(1, count + 1)]
        weight_map = {t.name: name for name, part in zip(names, shards, strict=True) for t in part}
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)},
            "weight_map": weight_map,
        }
        (as_path(folder) / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    for name, part in zip(names, shards, strict=True):
        _write_file(str(as_path(folder) / name), part, wrote)


def _write_file(path: str, tensors: Sequence[NewTensor], wrote: Callable[[int], None]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, start + tensor.nbytes],
        }
        start += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # aligns the values, as the library does
    with as_path(path).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        contents = prefetch(lambda at: tensors[at].make(), 0, len(tensors), ahead=1)
        for tensor, values in zip(tensors, contents, strict=True):
            content = np.ascontiguousarray(values, tensor.dtype)
            file.write(content.reshape(-1).view(np.uint8).data)
            wrote(tensor.nbytes)
