from pathlib import Path

import fsspec
import pytest

from data_pipelines.inputs import common_folder, file_sizes, glob_files, open_input, relative_names
from prts_jax.errors import UserError
from tests.gcs import fake_gcs, gcs_server  # noqa: F401 (fixtures)


def test_names_are_relative_to_the_deepest_folder_that_all_share(tmp_path: Path):
    files = [f"{tmp_path}/train/chunk1/a", f"{tmp_path}/train/chunk2/b"]
    assert common_folder(files) == f"{tmp_path}/train"
    assert relative_names(files) == ["chunk1/a", "chunk2/b"]
    remote = ["gs://bucket/train/chunk1/a", "gs://bucket/train/chunk2/b"]
    assert common_folder(remote) == "gs://bucket/train"
    assert relative_names(remote) == ["chunk1/a", "chunk2/b"]
    assert relative_names(remote[:1]) == ["a"]


def test_object_storage_answers_as_a_disk_does(tmp_path: Path, fake_gcs: str):  # noqa: F811
    for name, content in (("chunk10/a", b"aaa"), ("chunk2/b", b"bb"), ("chunk2/empty", b"")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    fsspec.filesystem("gs").put(str(tmp_path), fake_gcs, recursive=True)
    for folder in (str(tmp_path), fake_gcs):
        files = glob_files(folder, "chunk*/*")
        assert [file.removeprefix(folder) for file in files] == [
            *("/chunk2/b", "/chunk2/empty", "/chunk10/a")
        ]
        assert file_sizes(files) == [2, 0, 3]
        with open_input(files[0]) as file:
            assert file.read() == b"bb"
        assert glob_files(folder, "none*/*") == []
        with pytest.raises(UserError, match="input.*(gone|No such file)"):
            file_sizes([f"{folder}/chunk2/none", *files])
        with pytest.raises(OSError):
            open_input(f"{folder}/chunk2/none")
