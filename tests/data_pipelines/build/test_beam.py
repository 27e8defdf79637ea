"""The Beam pipeline against the local run, byte for byte; needs the extra `beam`."""

import functools
import json
import os
import pickle
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import fsspec
import pytest
import zstandard

from data_pipelines.build.cache import cache
from data_pipelines.build.rules import Rules
from data_pipelines.build.store_build import Build
from data_pipelines.store.store import TokenStore
from data_pipelines.text.native import NativeTask
from data_pipelines.text.plain import open_plain_task
from data_pipelines.text.sources import EMBEDDED_SHAKESPEARE, SLIMPAJAMA
from data_pipelines.text.tokenizer import load_tokenizer
from prts_jax.errors import UserError
from tests.data_pipelines.text.hf_tokenizers import END, save, small
from tests.gcs import fake_gcs, gcs_server  # noqa: F401 (fixtures)

pytestmark = pytest.mark.beam
TOKENIZER = EMBEDDED_SHAKESPEARE / "tokenizer.model"
SETS = list(SLIMPAJAMA.sets.values())


@pytest.fixture(scope="module")
def beam() -> ModuleType:
    pytest.importorskip("apache_beam", reason="runs in the environment of `make test-beam`")
    from data_pipelines.build import beam

    return beam


@pytest.fixture
def slimpajama(tmp_path: Path, write_rows: Callable[..., Path]) -> Path:
    folder = tmp_path / "slimpajama"
    for number in range(5):
        rows = [(f"row {row} of {number}: to be or not to be", SETS[row % 7]) for row in range(12)]
        write_rows(folder / f"train/chunk{1 + number % 2}/example_train_{number}.jsonl.zst", rows)
    return folder


def spoil(folder: Path) -> None:
    """A bad line at the end of one file, and another file that is cut off."""
    files = sorted(folder.glob("train/*/*.zst"))
    files[1].write_bytes(files[1].read_bytes() + zstandard.compress(b'{"text": "\\ud800"}\n'))
    files[3].write_bytes(files[3].read_bytes() + zstandard.compress(b"lost" * 99)[:-9])


def opened(folder: Path | str) -> NativeTask:
    return open_plain_task("slimpajama_no_github", "train", folder, TOKENIZER)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("layout", ["mixed", "by_set"])
def test_beam_writes_the_bytes_of_a_local_build(
    beam: ModuleType, slimpajama: Path, tmp_path: Path, layout: str
):
    spoil(slimpajama)
    rules = Rules(skip_bad=True, max_bad_fraction=0.5, layout=layout)
    lines: list[str] = []
    store = beam.cache(opened(slimpajama), tmp_path / "beam", (), lines.append, rules)
    cache(opened(slimpajama), tmp_path / "local", lambda line: None, rules)
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")
    index = json.loads((tmp_path / "beam" / "index.json").read_bytes())
    assert index["bad"] == {"lone_surrogate": 1, "truncated_file": 1}
    summary = f"slimpajama_no_github/train: 5 of 5 files made, {store.tokens:,} tokens"
    assert len(lines) == 1
    assert lines[0].startswith(f"{summary}, ")
    assert lines[0].endswith(" tokens/s")


def test_beam_writes_the_bytes_of_a_local_build_with_a_tokenizer_json(
    beam: ModuleType, slimpajama: Path, tmp_path: Path
):
    tokenizer = save(small(), tmp_path / "tokenizer", eos_token=END)
    task = open_plain_task("slimpajama_no_github", "train", slimpajama, tokenizer)
    store = beam.cache(task, tmp_path / "beam", (), lambda line: None)
    cache(task, tmp_path / "local", lambda line: None)
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")
    assert store.tokenizer == load_tokenizer(tokenizer).sha256


def test_beam_with_several_processes_writes_the_same_bytes(
    beam: ModuleType, slimpajama: Path, tmp_path: Path
):
    options = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    beam.cache(opened(slimpajama), tmp_path / "beam", options, lambda line: None)
    cache(opened(slimpajama), tmp_path / "local", lambda line: None)
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")


def test_bad_input_is_one_line_and_a_restart_writes_only_missing_shards(
    beam: ModuleType, slimpajama: Path, tmp_path: Path
):
    spoil(slimpajama)
    store, lines = tmp_path / "store", []
    with pytest.raises(UserError, match=r"lone_surrogate: .*, line 13: .* \(and 1 files more\)"):
        beam.cache(opened(slimpajama), store, (), lines.append)
    with pytest.raises(UserError, match="no finished token store"):
        TokenStore.open(store)
    # Another process had begun a file and was killed.
    (store / "shard-00001.tokens.1-1.tmp").write_bytes(b"cut off")
    few = Rules(skip_bad=True, max_bad_fraction=0.01)
    with pytest.raises(UserError, match="too much bad input: 2 of "):
        beam.cache(opened(slimpajama), store, (), lines.append, few)
    enough = Rules(skip_bad=True, max_bad_fraction=0.5)
    beam.cache(opened(slimpajama), store, (), lines.append, enough)
    counts = [line.split(": ")[1].split(" files")[0] for line in lines]
    assert counts == ["3 of 5", "2 of 5", "0 of 5"]
    assert sorted(contents(store)) == sorted(
        [
            ".lock",
            "checksums",
            "index.json",
            "tokenizer.model",
            *(
                f"shard-0000{i}.{part}"
                for i in range(5)
                for part in ("ends", "rows", "sources", "tokens")
            ),
        ]
    )
    lines.clear()
    beam.cache(opened(slimpajama), store, (), lines.append, enough)
    assert lines == [f"slimpajama_no_github/train: already cached in {store}, 2 bad rows left out"]


def test_a_failing_disk_is_a_user_error(
    beam: ModuleType, slimpajama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(build: Build, number: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(Build, "write", full)
        with pytest.raises(UserError, match="cannot write the store .*No space left"):
            beam.cache(opened(slimpajama), tmp_path / "store")
    beam.cache(opened(slimpajama), tmp_path / "store")


def test_input_and_output_on_object_storage(
    beam: ModuleType,
    slimpajama: Path,
    tmp_path: Path,
    fake_gcs: str,  # noqa: F811
):
    system = fsspec.filesystem("gs")
    system.put(str(slimpajama), f"{fake_gcs}/slimpajama", recursive=True)
    remote = beam.cache(
        opened(f"{fake_gcs}/slimpajama"), f"{fake_gcs}/store", (), lambda line: None
    )
    local = cache(opened(slimpajama), tmp_path / "local", lambda line: None)
    assert remote.fingerprint == local.fingerprint
    system.get(f"{fake_gcs}/store", str(tmp_path / "fetched"), recursive=True)
    (tmp_path / "local" / ".lock").unlink()
    assert contents(tmp_path / "fetched") == contents(tmp_path / "local")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--runer=DataflowRunner"], "no option --runer"),
        (["--direct_num_workers=many"], "refuses its options: .*invalid int value: 'many'"),
        (["--runner=NoSuchRunner"], "refuses its options: .*NoSuchRunner"),
        (["--runner=DataflowRunner", "--project=p"], "workers do not reach .*store"),
    ],
)
def test_unknown_beam_options_are_refused(
    beam: ModuleType, slimpajama: Path, tmp_path: Path, options: list[str], message: str
):
    with pytest.raises(UserError, match=message):
        beam.cache(opened(slimpajama), tmp_path / "store", options)
    assert not list((tmp_path / "store").glob("shard*"))


@pytest.fixture(scope="module")
def all_of_slimpajama() -> Build:
    files = [
        f"gs://bucket/SlimPajama-627B/train/chunk{1 + i // 5917}/example_train_{i}.jsonl.zst"
        for i in range(59_166)
    ]
    task = NativeTask(
        "slimpajama",
        "train",
        tuple(files),
        tuple(SETS),
        frozenset(SETS),
        load_tokenizer(TOKENIZER),
    )
    return Build(task, "gs://bucket/store", Rules(), [15_000_000 + i for i in range(len(files))])


def test_the_job_description_for_all_of_slimpajama_is_small(all_of_slimpajama: Build):
    # Dataflow takes one of 10 MB, and Beam compresses what it sends.
    assert all_of_slimpajama.identity["inputs"][0] == "chunk1/example_train_0.jsonl.zst"
    assert len(zlib.compress(pickle.dumps(all_of_slimpajama))) < 2_000_000


def test_dataflows_runner_accepts_the_pipeline(beam: ModuleType, all_of_slimpajama: Build):
    """All that it does before it sends the job, which needs no network with these two flags."""
    given = ["--project=project", "--region=us-central1", "--temp_location=gs://bucket/tmp"]
    given += ["--sdk_container_image=registry/image:1", "--max_num_workers=500"]
    options = beam.parse_options(["--runner=DataflowRunner", *given, "--dry_run=True", "--no_auth"])
    job = beam.pipeline_of(all_of_slimpajama, options).run().job
    components = job.proto_pipeline.components
    assert len(job.proto_pipeline.SerializeToString()) < 10_000_000
    names = {transform.unique_name for transform in components.transforms.values()}
    assert names >= {"files/Impulse", "spread/ReshufflePerKey", "make shards", "finish"}
    images = [environment.payload for environment in components.environments.values()]
    assert any(b"registry/image:1" in image for image in images)


WITHOUT_SEQIO = """
import sys
sys.modules.update(dict.fromkeys(("seqio", "tensorflow", "tensorflow_datasets")))
from prts_jax.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_command_needs_no_tensorflow(beam: ModuleType, tmp_path: Path):
    command = [sys.executable, "-c", WITHOUT_SEQIO, "data", "beam", "--task=shakespeare"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = functools.partial(subprocess.run, capture_output=True, text=True, env=environment)
    done = run(
        [*command, "--split=validation", f"--output={tmp_path}", "--", "--runner=DirectRunner"],
        check=True,
        timeout=120,
    )
    store = TokenStore.open(tmp_path / "validation")
    assert done.stdout == (
        f"{store.directory}: {store.tokens:,} tokens of {store.documents:,} documents\n"
    )
    refused = run([*command, f"--output={tmp_path}", "--", "--runer=x"], check=False, timeout=120)
    assert refused.returncode == 2
    assert refused.stderr == "prts data: Beam has no option --runer: see its PipelineOptions\n"


def test_a_task_that_only_seqio_can_run(
    beam: ModuleType, slimpajama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    module = """
import seqio
from data_pipelines.text.sources import SLIMPAJAMA
from data_pipelines.text.tasks import CorpusSource

seqio.TaskRegistry.add(
    "no_eos",
    source=CorpusSource(SLIMPAJAMA, {folder!r}, ["book", "arxiv"]),
    preprocessors=[seqio.preprocessors.tokenize],
    output_features={{"targets": seqio.Feature(seqio.SentencePieceVocabulary({tokenizer!r}))}},
)
"""
    text = module.format(folder=str(slimpajama), tokenizer=str(TOKENIZER))
    (tmp_path / "tasks_for_beam.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    from data_pipelines.text.tasks import SeqioFileTask, open_task

    task = open_task("no_eos", "train", modules=["tasks_for_beam"])
    assert isinstance(task, SeqioFileTask)
    beam.cache(task, tmp_path / "beam", (), lambda line: None)
    cache(task, tmp_path / "local", lambda line: None)
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")
