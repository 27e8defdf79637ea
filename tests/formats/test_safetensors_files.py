"""Safetensors files against the library of that name."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prts_jax.errors import UserError
from prts_jax.formats import safetensors_files as files

safetensors = pytest.importorskip("safetensors")
library = pytest.importorskip("safetensors.numpy")

RNG = np.random.default_rng(0)
TENSORS = {
    "a.weight": RNG.normal(size=(3, 5)).astype(np.float32),
    "b": RNG.normal(size=(4,)).astype(ml_dtypes.bfloat16),
    "c": RNG.normal(size=(2, 1, 3)).astype(np.float16),
}


def new_tensors() -> list[files.NewTensor]:
    return [
        files.NewTensor(name, values.shape, values.dtype, lambda values=values: values)
        for name, values in TENSORS.items()
    ]


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    library.save_file(TENSORS, tmp_path / files.SINGLE, metadata={"format": "pt"})
    actual = files.open_folder(str(tmp_path))
    assert actual.keys() == TENSORS.keys()
    for name, values in TENSORS.items():
        assert actual[name].dtype == values.dtype
        np.testing.assert_array_equal(actual[name].read(), values)


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    wrote: list[int] = []
    files.write_folder(str(tmp_path), new_tensors(), 10**9, wrote.append)
    actual = library.load_file(tmp_path / files.SINGLE)
    for name, values in TENSORS.items():
        assert actual[name].dtype == values.dtype
        np.testing.assert_array_equal(actual[name], values)
    assert sum(wrote) == sum(values.nbytes for values in TENSORS.values())


def test_files_hold_at_most_so_many_bytes_or_one_tensor(tmp_path: Path) -> None:
    files.write_folder(str(tmp_path), new_tensors(), 20, lambda count: None)
    index = json.loads((tmp_path / files.INDEX).read_text())
    assert len(set(index["weight_map"].values())) == 2  # 60 bytes alone; 8 and 12 together
    assert index["metadata"]["total_size"] == sum(values.nbytes for values in TENSORS.values())
    for name, tensor in files.open_folder(str(tmp_path)).items():
        assert Path(tensor.file).name == index["weight_map"][name]
        np.testing.assert_array_equal(tensor.read(), TENSORS[name])


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / files.SINGLE
    library.save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"is cut short: \S+ lies beyond its end"):
        files.open_folder(str(tmp_path))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    files.write_folder(str(tmp_path), new_tensors(), 20, lambda count: None)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002.safetensors: does not exist"):
        files.open_folder(str(tmp_path))


@given(content=st.binary(max_size=64), header=st.booleans())
def test_garbage_is_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, header: bool
) -> None:
    path = tmp_path_factory.mktemp("garbage") / files.SINGLE
    path.write_bytes(len(content).to_bytes(8, "little") + content if header else content)
    try:
        files.read_header(str(path))
    except UserError as error:
        assert "\n" not in str(error)
