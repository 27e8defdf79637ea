"""Folders of files against SentencePiece on each text, and what is bad in them."""

import bz2
import gzip
import hashlib
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow
import pytest
import sentencepiece
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from data_pipelines.build.cache import cache
from data_pipelines.build.rules import Rules
from data_pipelines.text.folders import Format, left_out, open_folder, read_text, splits_of
from data_pipelines.text.rows import Document, Fault
from data_pipelines.text.sources import EMBEDDED_SHAKESPEARE
from prts_jax.cli import data
from prts_jax.errors import UserError
from tests.gcs import fake_gcs, gcs_server  # noqa: F401 (fixtures)

TOKENIZER = EMBEDDED_SHAKESPEARE / "tokenizer.model"
PROCESSOR = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))
EOS = 2

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
}


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def jsonl(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def write_parquet(path: Path, rows: list[dict[str, object]], row_group_size: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=row_group_size)


def tokens_of(*texts: str) -> list[int]:
    return [token for text in texts for token in [*PROCESSOR.encode(text), EOS]]


def test_a_text_file_is_a_document_and_its_sub_folder_a_set(tmp_path: Path):
    folder = tmp_path / "input"
    for ending, compress in COMPRESS.items():
        write(folder / f"train/prose/a.txt{ending}", compress(b"Prose.\n\nTwo lines."))
    write(folder / "train/verse/deep/er/b.md", "# Verse ✓".encode())
    write(folder / "train/readme.md", b"in no folder")
    write(folder / "train/verse/picture.png", b"\x89PNG")
    write(folder / "validation/prose/c.txt", b"held out")

    form = Format("text")
    assert list(splits_of(folder, form)) == ["train", "validation"]
    task = open_folder(folder, "train", form, TOKENIZER)
    names = [Path(file).relative_to(folder / "train").as_posix() for file in task.files]
    assert names == [
        *("prose/a.txt", "prose/a.txt.gz", "prose/a.txt.zst", "readme.md", "verse/deep/er/b.md")
    ]
    store = cache(task, tmp_path / "store", lambda line: None, Rules(layout="by_set"))
    prose = ["Prose.\n\nTwo lines."] * 3
    assert store.read(0, store.tokens).tolist() == tokens_of(*prose, "in no folder", "# Verse ✓")
    assert store.sources == ("prose", "text", "verse")
    held_out = open_folder(folder, "validation", form, TOKENIZER)
    assert held_out.sources == store.sources, "a source id means the same in every split"


@pytest.mark.parametrize("ending", COMPRESS)
def test_any_field_of_json_lines_can_hold_text_and_set(tmp_path: Path, ending: str):
    rows = [
        {"body": {"raw": "first"}, "lang": "en"},
        {"body": {"raw": "zweite"}, "lang": "de"},
        {"body": {"raw": "third"}, "lang": "en"},
    ]
    write(tmp_path / f"input/part-0.jsonl{ending}", COMPRESS[ending](jsonl(*rows)))
    form = Format("jsonl", "body.raw", "lang", ("de", "en"))
    task = open_folder(tmp_path / "input", "train", form, TOKENIZER)
    store = cache(task, tmp_path / "store", lambda line: None)
    assert store.read(0, store.tokens).tolist() == tokens_of("first", "zweite", "third")
    ids = [
        sid for row in rows for sid in [row["lang"] == "en"] * len(tokens_of(row["body"]["raw"]))
    ]
    assert store.source_ids(0, store.tokens).tolist() == ids


def test_parquet_and_json_lines_give_the_same_store(tmp_path: Path):
    rows: list[dict[str, object]] = [
        {"meta": {"lang": lang, "n": n}, "content": f"text {n} in {lang}", "extra": [n]}
        for n, lang in enumerate(["en", "de", "en", "en", "de"])
    ]
    write_parquet(tmp_path / "parquet/train/0.parquet", rows)
    write(tmp_path / "jsonl/train/0.jsonl", jsonl(*rows))
    stores = [
        cache(
            open_folder(
                tmp_path / name,
                "train",
                Format(name, "content", "meta.lang", ("de", "en")),
                TOKENIZER,
            ),
            tmp_path / f"{name}-store",
            lambda line: None,
        )
        for name in ("parquet", "jsonl")
    ]
    assert stores[0].fingerprint == stores[1].fingerprint
    assert stores[0].read(0, stores[0].tokens).tolist() == tokens_of(
        *(str(row["content"]) for row in rows)
    )


@pytest.mark.parametrize("name", ["text", "jsonl", "parquet"])
def test_several_processes_write_the_same_bytes(tmp_path: Path, name: str):
    for number in range(5):
        folder = tmp_path / "input" / f"set{number % 2}"
        write(folder / f"{number}.txt", f"text {number}".encode())
        write(folder / f"{number}.jsonl", jsonl({"text": f"text {number}"}, {"text": 3}))
        write_parquet(folder / f"{number}.parquet", [{"text": f"text {number}"}, {"text": None}])
    task = open_folder(tmp_path / "input", "train", Format(name), TOKENIZER)
    assert task.sources == ("set0", "set1")
    stores = []
    for workers in (1, 3):
        cache(task, tmp_path / f"{workers}", lambda line: None, Rules(True, 0.5), workers)
        stores.append(
            {file.name: file.read_bytes() for file in (tmp_path / f"{workers}").iterdir()}
        )
    assert stores[0] == stores[1]
    bad = json.loads(stores[0]["index.json"])["bad"]
    assert bad == ({} if name == "text" else {"text_not_a_string": 5})


def test_a_bad_text_is_one_fault(tmp_path: Path):
    def damaged(kind: str, size: int) -> Fault:
        return Fault(kind, 1, lost_bytes=size)

    whole, small = gzip.compress(b"To be, or not to be. " * 99), zstandard.compress(b"abc")
    for name, content, fault in (
        ("a.txt", b"good\nbad \xff\n", Fault("invalid_utf8", 2, "invalid start byte")),
        ("a.txt", b"", Fault("empty_text", 1)),
        ("a.txt", b"x" * 101, Fault("enormous_line", 1)),
        ("a.txt.gz", whole[:-20], damaged("truncated_file", len(whole) - 20)),
        ("a.txt.gz", whole[:-8] + b"\0" * 8, damaged("corrupt_file", len(whole))),
        ("a.txt.gz", b"no gzip", damaged("corrupt_file", 7)),
        ("a.txt.zst", small[:-1], damaged("truncated_file", len(small) - 1)),
    ):
        limit = 100 if fault.kind == "enormous_line" else 1 << 20
        write(tmp_path / name, content)
        assert list(read_text(str(tmp_path / name), max_text_bytes=limit)) == [fault]
    with pytest.raises(UserError, match="cannot read .*none.txt: No such file"):
        list(read_text(str(tmp_path / "none.txt")))


@pytest.mark.parametrize("folder", ["", "data/", "en/"])
def test_file_names_name_splits_as_on_the_hub(tmp_path: Path, folder: str):
    for split in ("train", "validation", "test"):
        write_parquet(tmp_path / f"{folder}{split}-00000-of-00001.parquet", [{"text": split}])
    assert list(splits_of(tmp_path, Format("parquet"))) == ["train", "validation", "test"]
    for split in ("train", "validation"):
        task = open_folder(tmp_path, split, Format("parquet"), TOKENIZER)
        [document] = task.documents(0)
        assert document.tokens.tolist() == tokens_of(split)
        assert task.sources == (folder.strip("/") or "parquet",)


def test_files_without_a_split_beside_files_of_one_are_refused_unless_chosen(tmp_path: Path):
    for name in ("web.jsonl", "train_books.jsonl", "dev.jsonl"):
        write(tmp_path / name, jsonl({"text": name}))
    with pytest.raises(UserError, match=r"several splits: .*web\.jsonl names no split"):
        open_folder(tmp_path, "train", Format("jsonl"), TOKENIZER)
    for form, name in (
        (Format("jsonl", include=("web*",)), "web.jsonl"),
        (Format("jsonl", exclude=("web*",)), "train_books.jsonl"),
    ):
        [file] = open_folder(tmp_path, "train", form, TOKENIZER).files
        assert Path(file).name == name


def test_every_spelling_of_a_format_is_read_and_hidden_and_other_files_are_not(tmp_path: Path):
    names = ["a.json.gz", "b.NDJSON", "c.JSONL", "d.jsonl.xz", "e.json.bz2", "f.jsonl.ZST"]
    content = jsonl({"text": "hello"})
    compress = {**COMPRESS, ".xz": lzma.compress, ".bz2": bz2.compress}
    for name in names:
        packed = compress.get(Path(name).suffix.lower(), compress[""])
        write(tmp_path / name, packed(content))
    for name in (".cache/x.jsonl", ".git/y.jsonl", "_SUCCESS", "_tmp/z.jsonl", ".a.jsonl"):
        write(tmp_path / name, content)
    write(tmp_path / "notes.rst", b"text")
    task = open_folder(tmp_path, "train", Format("jsonl"), TOKENIZER)
    assert [Path(file).name for file in task.files] == names
    for index in range(len(names)):
        [document] = task.documents(index)
        assert document.tokens.tolist() == tokens_of("hello")
    note = left_out(tmp_path, task.files)
    assert note == f"{tmp_path}: 1 files are not read (1 .rst); the first is notes.rst"


def test_an_incomplete_or_altered_download_is_an_error(tmp_path: Path):
    for number in range(3):
        write(tmp_path / f"input/{number}.jsonl", jsonl({"text": f"text {number}"}))
    sums = tmp_path / "sums"
    digests = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
        for file in sorted((tmp_path / "input").iterdir())
    ]
    sums.write_text("".join(digests))
    command = ["cache", "--format=jsonl", f"--input={tmp_path}/input", f"--tokenizer={TOKENIZER}"]
    command += ["--split=train", "--workers=1", f"--output={tmp_path}/out"]
    with pytest.raises(UserError, match="has 3 files to read, not the 4 of --expect"):
        data.main([*command, "--expect=4"])
    whole = (tmp_path / "input/1.jsonl").read_bytes()
    write(tmp_path / "input/1.jsonl", whole.replace(b"1", b"7"))
    with pytest.raises(UserError, match=r"altered input: .*1\.jsonl has the SHA-256"):
        data.main([*command, f"--expect={sums}"])
    (tmp_path / "input/1.jsonl").unlink()
    with pytest.raises(UserError, match=r"1 of the 3 files .* are missing .* 1\.jsonl"):
        data.main([*command, f"--expect={sums}"])
    write(tmp_path / "input/1.jsonl", whole)
    write(tmp_path / "input/3.jsonl", whole)
    with pytest.raises(UserError, match=r"1 files .* are not in .*3\.jsonl"):
        data.main([*command, f"--expect={sums}"])
    (tmp_path / "input/3.jsonl").unlink()
    for expected in (sums, sums, 3):
        data.main([*command, f"--expect={expected}"])


def test_damaged_files_count_by_files_and_bytes(tmp_path: Path):
    packed = gzip.compress(jsonl(*({"text": f"text {n} {n * n}"} for n in range(500))))
    for number in range(10):
        write(tmp_path / f"input/{number}.jsonl.gz", packed[:-20] if number < 3 else packed)
    task = open_folder(tmp_path / "input", "train", Format("jsonl"), TOKENIZER)
    message = r"3 of 3,503 rows, 3 of 10 files, [\d,]+ of [\d,]+ bytes, more than .*=0\.01"
    with pytest.raises(UserError, match=message):
        cache(task, tmp_path / "store", lambda line: None, Rules(True, 0.01))
    store = cache(task, tmp_path / "store", lambda line: None, Rules(True, 0.3))
    assert store.documents == 3500


@given(content=st.binary(max_size=60), ending=st.sampled_from(["", ".gz", ".zst"]))
def test_any_text_file_is_one_document_or_one_fault(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, ending: str
):
    path = tmp_path_factory.getbasetemp() / f"fuzzed.txt{ending}"
    path.write_bytes(content)
    [row] = read_text(str(path))
    if not ending and isinstance(row, Document):
        assert row.text.encode() == content


def test_folders_without_usable_input_are_refused(tmp_path: Path):
    write(tmp_path / "a.txt", b"text")
    with pytest.raises(UserError, match=r"no text found: .* have no file \*\.parquet"):
        open_folder(tmp_path, "train", Format("parquet"), TOKENIZER)
    write(tmp_path / "train/a.txt", b"text")
    with pytest.raises(UserError, match=r"no text found: .*/validation"):
        open_folder(tmp_path, "validation", Format("text"), TOKENIZER)
    for number in range(257):
        write(tmp_path / f"sets/{number}/a.txt", b"text")
    with pytest.raises(UserError, match="257 sets in .*: a store has at most 256"):
        open_folder(tmp_path / "sets", "train", Format("text"), TOKENIZER)
    with pytest.raises(UserError, match="--set_field and --sets go together"):
        Format("jsonl", set_field="lang")
    with pytest.raises(UserError, match="--set_field and --sets go together"):
        Format("jsonl", sets=("a",))
    for sets in (("a", "b", "a"), ("a", "")):
        with pytest.raises(UserError, match="give each name once, none empty"):
            Format("jsonl", set_field="lang", sets=sets)
    with pytest.raises(UserError, match="--format=text has no fields"):
        Format("text", set_field="lang", sets=("a",))


@pytest.mark.parametrize("name", ["text", "jsonl", "parquet"])
def test_a_folder_on_object_storage(tmp_path: Path, name: str, fake_gcs: str):  # noqa: F811
    folder = tmp_path / "input"
    for number in (1, 10, 2):
        write(folder / f"train/a/{number}.txt.gz", gzip.compress(f"text {number}".encode()))
        write(folder / f"train/a/{number}.jsonl.zst", zstandard.compress(jsonl({"text": "hello"})))
        write_parquet(folder / f"train/a/{number}.parquet", [{"text": f"text {number}"}])
    fsspec.filesystem("gs").put(str(folder), f"{fake_gcs}/input", recursive=True)
    for where, out in ((folder, "local"), (f"{fake_gcs}/input", "remote")):
        cache(open_folder(where, "train", Format(name), TOKENIZER), tmp_path / out, lambda _: None)
    index, remote = ((tmp_path / out / "index.json").read_bytes() for out in ("local", "remote"))
    assert index == remote
    assert [Path(shard["source_file"]).name[:2] for shard in json.loads(index)["shards"]] == [
        *("1.", "2.", "10")
    ]


def test_the_command_makes_every_existing_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path / "input/train/a.jsonl", jsonl({"content": "hello"}))
    write(tmp_path / "input/tokenizer.model", TOKENIZER.read_bytes())
    command = ["cache", f"--input={tmp_path}/input", "--workers=1", "--format=jsonl"]
    data.main([*command, "--text_field=content", f"--output={tmp_path}/out"])
    assert capsys.readouterr().out == (
        f"{tmp_path}/out/train: {len(tokens_of('hello'))} tokens of 1 documents\n"
    )
    with pytest.raises(UserError, match=r"missing_text: .*a\.jsonl, line 1: .*\(text\)"):
        data.main([*command, f"--output={tmp_path}/other"])
    with pytest.raises(UserError, match="another store is in the way: .* differs in task"):
        data.main([*command, f"--output={tmp_path}/out"])

    whole = ["cache", f"--input={tmp_path}/input/train", "--workers=1", "--format=jsonl"]
    whole += ["--text_field=content", f"--tokenizer={TOKENIZER}", f"--output={tmp_path}/whole"]
    with pytest.raises(UserError, match="has no train/ and no validation/ .* --split"):
        data.main(whole)
    data.main([*whole, "--split=validation"])
    assert (tmp_path / "whole/validation/index.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format=text"], "--format goes with --input"),
        (["--format=text", "--input=x", "--module=m"], "without --module"),
        (["--task=shakespeare", "--text_field=content"], "--text_field goes with --format"),
        (["--task=shakespeare", "--format=text"], "not allowed with argument --task"),
        ([], "one of the arguments --task --format is required"),
    ],
)
def test_contradicting_flags_are_refused(tmp_path: Path, flags: list[str], message: str):
    with pytest.raises(UserError, match=message):
        data.main(["cache", *flags, f"--output={tmp_path}/out"])
    assert not (tmp_path / "out").exists()
