"""Paths of local disk and gs://, and files that are replaced as a whole."""

import subprocess
import sys
from pathlib import Path

import pytest

from prts_jax.errors import StorageError, UserError
from prts_jax.paths import as_path, check_output, exists, is_remote, write_atomically


def test_local_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert str(as_path("run/a")) == str(tmp_path / "run" / "a")
    assert str(as_path("~/run")) == str(tmp_path / "home" / "run")
    assert str(as_path(Path("/x/y"))) == "/x/y"


def test_a_path_that_cannot_be_looked_up_is_not_taken_for_a_missing_one(tmp_path, monkeypatch):
    file = tmp_path / "file"
    assert not exists(file)
    file.touch()
    assert exists(file)
    assert not exists(file / "below")

    def stale(path):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr("os.stat", stale)
    with pytest.raises(OSError, match="Stale"):
        exists(file)


def test_remote_paths_stay_as_they_are():
    assert str(as_path("gs://bucket/run") / "checkpoints") == "gs://bucket/run/checkpoints"


@pytest.mark.parametrize(
    ("path", "instead"),
    [
        ("gcs://bucket/x", "give gs://bucket/x"),
        ("file:///home/x", "give /home/x"),
        ("s3://bucket/x", "give a local path or gs://bucket/…"),
        ("http://host/x", "give a local path or gs://bucket/…"),
    ],
)
def test_other_schemes_are_refused_by_name(path, instead):
    with pytest.raises(UserError, match=f"{path.split(':')[0]}:// are not supported; {instead}"):
        as_path(path)


def test_bytes_that_are_not_utf8_are_refused():
    with pytest.raises(UserError, match="holds bytes that are not UTF-8; rename it"):
        as_path("/runs/\udcff")


@pytest.mark.parametrize("path", ["gs://", "gs:///run"])
def test_an_address_without_a_bucket_is_refused_at_once(path):
    with pytest.raises(UserError, match=f"{path}: names no bucket"):
        as_path(path)


@pytest.mark.parametrize(
    ("path", "remote"), [("gs://bucket/x", True), ("/gs/x", False), (Path("x"), False)]
)
def test_what_lies_in_an_object_store(path, remote):
    assert is_remote(path) is remote


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "config.json"
    write_atomically(path, "old")
    before = path.stat().st_ino
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_ino != before  # a reader that has it open still sees the old text
    assert [other.name for other in tmp_path.iterdir()] == ["config.json"]


def test_a_failed_write_leaves_the_old_text(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    write_atomically(path, "old")
    monkeypatch.setattr(type(as_path(path)), "replace", refuse)
    with pytest.raises(StorageError, match=r"config\.json: cannot be written \(full\)"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [other.name for other in tmp_path.iterdir()] == ["config.json"]


def refuse(*arguments: object) -> None:
    raise OSError("full")


def test_a_remote_path_loads_no_tensorflow():
    program = (
        "import sys; from prts_jax.paths import as_path; as_path('gs://bucket/x').name; "
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_output_that_can_be_written_is_left_as_it_was(tmp_path):
    (tmp_path / "old").write_text("old")
    for name in ("old", "new", "folder/below/new"):
        check_output(tmp_path / name, "--out")
    assert [path.name for path in tmp_path.rglob("*")] == ["old"]
    assert (tmp_path / "old").read_text() == "old"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("x" * 300, "File name too long"),
        (("x" * 99 + "/") * 40 + "x" * 200, "File name too long"),
        ("file/b", "Not a directory"),
        ("folder", "Is a directory"),
        ("new/" + "x" * 300, "File name too long"),
    ],
    ids=["long name", "deep", "below a file", "a folder", "long name in a new folder"],
)
def test_an_output_that_cannot_be_written_is_refused_and_nothing_stays(tmp_path, name, reason):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=f"--out: cannot be written .{reason}"):
        check_output(tmp_path / name, "--out")
    assert {path.name for path in tmp_path.rglob("*")} == {"file", "folder"}
