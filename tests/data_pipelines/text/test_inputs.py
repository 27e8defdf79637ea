import os
from pathlib import Path

import fsspec
import pytest

from data_pipelines.text.inputs import (
    common_folder,
    file_version,
    glob_files,
    input_sizes,
    open_input,
    relative_names,
)
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


def test_object_storage_lists_the_same_files_as_a_disk(tmp_path: Path, fake_gcs: str):  # noqa: F811
    for name, content in (
        ("chunk10/a", b"aaa"),
        ("chunk2/b", b"bb"),
        ("chunk2/empty", b""),
        ("chunk2/folder/c", b"c"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    fsspec.filesystem("gs").put(str(tmp_path), fake_gcs, recursive=True)
    for folder in (str(tmp_path), fake_gcs):
        files = glob_files(folder, "chunk*/*")
        assert [file.removeprefix(folder) for file in files] == [
            *("/chunk2/b", "/chunk2/empty", "/chunk10/a")
        ]
        assert input_sizes(files) == [2, 0, 3]
        with open_input(files[0]) as file:
            assert file.read() == b"bb"
        version = file_version(files[0])
        assert file_version(files[0]) == version
        with fsspec.open(files[0], "wb") as file:
            file.write(b"cc")
        if folder == str(tmp_path):  # whose clock may stand still for milliseconds
            os.utime(files[0], ns=(0, int(version) + 1))
        assert file_version(files[0]) != version
        assert len(glob_files(folder, "**/*")) == 4
        assert glob_files(folder, "none*/*") == []
        assert glob_files(f"{folder}/none", "**/*") == []
        with pytest.raises(UserError, match="input.*(gone|No such file)"):
            input_sizes([f"{folder}/chunk2/none", *files])
        with pytest.raises(OSError):
            open_input(f"{folder}/chunk2/none")
        with pytest.raises(UserError, match="cannot read .*none"):
            file_version(f"{folder}/chunk2/none")


PATTERNS = ["chunk*/*.zst", "**/*"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_links_to_files_and_folders_are_followed(tmp_path: Path, pattern: str):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.zst").touch()
    (tmp_path / "input" / "chunk1").mkdir(parents=True)
    (tmp_path / "input" / "chunk1" / "b.zst").symlink_to(tmp_path / "elsewhere" / "a.zst")
    (tmp_path / "input" / "chunk2").symlink_to(tmp_path / "elsewhere")
    actual = glob_files(tmp_path / "input", pattern)
    assert actual == [f"{tmp_path}/input/chunk1/b.zst", f"{tmp_path}/input/chunk2/a.zst"]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("link", ["chunk1/a.zst", "chunk2"])
def test_a_broken_link_is_an_error(tmp_path: Path, pattern: str, link: str):
    (tmp_path / "chunk1").mkdir()
    (tmp_path / link).symlink_to(tmp_path / "not mounted")
    with pytest.raises(UserError, match=f"{link} is a link to nothing"):
        glob_files(tmp_path, pattern)


def test_a_folder_that_cannot_be_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "chunk1").mkdir()
    (tmp_path / "chunk1" / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="chunk1/link lies within itself"):
        glob_files(tmp_path, "**/*")
    with pytest.raises(UserError, match="cannot list the input: .*Not a directory"):
        glob_files(__file__, "**/*")

    # The superuser, as whom tests may run, may list everything.
    def refuse(folder: str) -> None:
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=f"cannot list the input: .*denied: '{tmp_path}'"):
        glob_files(tmp_path, "chunk*/*")


def test_the_order_of_files_does_not_depend_on_the_listing(tmp_path: Path):
    names = ["chunk01", "chunk1", "chunk1²", "chunk2", "chunk10"]
    for name in reversed(names):
        (tmp_path / name).touch()
    assert [Path(file).name for file in glob_files(tmp_path, "*")] == names
