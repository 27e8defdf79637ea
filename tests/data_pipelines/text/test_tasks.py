"""The seqio tasks against SentencePiece on each document."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import sentencepiece
import zstandard

from data_pipelines.build.cache import cache
from data_pipelines.build.rules import Rules
from data_pipelines.text.native import NativeTask
from data_pipelines.text.rows import Fault, read_documents
from data_pipelines.text.sources import EMBEDDED_SHAKESPEARE, SLIMPAJAMA, list_files
from prts_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
TOKENIZER = EMBEDDED_SHAKESPEARE / "tokenizer.model"
EOS = 2
TEXTS = [
    "To be, or not to be",
    " leading and trailing  blanks \n\n",
    "line\r\nends\u2028of every\x0bkind\n",
    "unseen: 漢字 🎭 \x7f",
    "▁ the piece's own mark",
    "1599",
    "x" * 5000,
    "a\0b",
]

WriteRows = Callable[..., Path]


@pytest.fixture(scope="session")
def tasks() -> ModuleType:
    # Importing seqio takes seconds, so it waits until a test asks.
    from data_pipelines.text import tasks

    return tasks


@pytest.fixture
def registered_at(tasks: ModuleType) -> Iterator[Callable[[Path], None]]:
    """`registered_at(folder)`: the folder is SlimPajama's until the test ends."""
    yield lambda folder: tasks.register(SLIMPAJAMA, folder, TOKENIZER)
    home = tasks.HOMES[SLIMPAJAMA.name]
    tasks.register(SLIMPAJAMA, home, home / TOKENIZER.name)


@pytest.fixture(scope="module")
def processor() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))


@pytest.fixture
def slimpajama(tmp_path: Path, write_rows: WriteRows) -> Path:
    """Three files of every set and every odd text."""
    names = list(SLIMPAJAMA.sets.values())
    for number, chunk in enumerate((1, 2, 10)):
        rows = [(text, names[(i + number) % 7]) for i, text in enumerate(TEXTS * 2)]
        write_rows(tmp_path / f"train/chunk{chunk}/example_train_0.jsonl.zst", rows)
    write_rows(tmp_path / "validation/chunk1/example_holdout_0.jsonl.zst", [("held out", names[0])])
    return tmp_path


def expected(
    processor: sentencepiece.SentencePieceProcessor, folder: Path, split: str, names: set[str]
) -> list[tuple[str, list[int]]]:
    return [
        (document.set_name, [*processor.encode(document.text), EOS])
        for file in list_files(folder, split)
        for document in read_documents(file)
        if document.set_name in names
    ]


ALL = set(SLIMPAJAMA.sets.values())


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("slimpajama", ALL),
        ("slimpajama_natural", ALL),
        ("slimpajama_no_github", ALL - {"RedPajamaGithub"}),
        *((f"slimpajama_{short}", {name}) for short, name in SLIMPAJAMA.sets.items()),
    ],
)
def test_a_cached_task_is_sentencepiece_and_eos_on_each_document(
    tasks: ModuleType,
    processor: sentencepiece.SentencePieceProcessor,
    slimpajama: Path,
    tmp_path: Path,
    name: str,
    names: set[str],
):
    task = tasks.open_task(name, "train", slimpajama, TOKENIZER)
    store = cache(task, tmp_path / "store", lambda line: None)
    wanted = expected(processor, slimpajama, "train", names)
    assert wanted
    assert store.documents == len(wanted)
    assert store.read(0, store.tokens).tolist() == [t for _, tokens in wanted for t in tokens]
    # Source ids mean the same in every task over the corpus.
    assert store.sources == tuple(SLIMPAJAMA.sets.values())
    ids = [store.sources.index(name) for name, tokens in wanted for _ in tokens]
    assert store.source_ids(0, store.tokens).tolist() == ids


def test_the_embedded_corpus_caches_as_it_is(
    tasks: ModuleType, processor: sentencepiece.SentencePieceProcessor, tmp_path: Path
):
    store = cache(tasks.open_task("shakespeare", "validation"), tmp_path, lambda line: None)
    sets = {"ShakespeareComedies", "ShakespeareHistories", "ShakespeareTragedies"}
    assert set(store.sources) == sets
    wanted = expected(processor, EMBEDDED_SHAKESPEARE, "validation", sets)
    assert store.read(0, store.tokens).tolist() == [t for _, tokens in wanted for t in tokens]
    assert store.vocab_size == 1024


def test_opening_a_task_elsewhere_does_not_change_the_registry(
    tasks: ModuleType, slimpajama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert tasks.open_task("slimpajama", "train", slimpajama, TOKENIZER).files
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="slimpajama"):
        tasks.open_task("slimpajama", "train")


def test_seqio_gives_the_same_online(
    tasks: ModuleType,
    processor: sentencepiece.SentencePieceProcessor,
    slimpajama: Path,
    registered_at: Callable[[Path], None],
):
    registered_at(slimpajama)
    dataset = tasks.seqio.get_mixture_or_task("slimpajama_no_github").get_dataset(
        sequence_length=None, split="train", shuffle=False, num_epochs=1
    )
    online = sorted(example["targets"].tolist() for example in dataset.as_numpy_iterator())
    wanted = expected(processor, slimpajama, "train", ALL - {"RedPajamaGithub"})
    assert online == sorted(tokens for _, tokens in wanted)


def test_any_task_over_files_can_be_cached(tasks: ModuleType, tmp_path: Path):
    seqio = tasks.seqio
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"first of {name}\nsecond of {name}\n")
    task = seqio.Task(
        "lines",
        source=seqio.TextLineDataSource({"train": str(tmp_path / "*.txt")}),
        preprocessors=[
            lambda dataset: dataset.map(lambda line: {"targets": line}),
            seqio.preprocessors.tokenize_and_append_eos,
        ],
        output_features={"targets": seqio.Feature(seqio.SentencePieceVocabulary(str(TOKENIZER)))},
    )
    file_task = tasks.SeqioFileTask("lines", "train", task)
    store = cache(file_task, tmp_path / "store", lambda line: None)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))
    lines = ["first of a", "second of a", "first of b", "second of b"]
    wanted = [token for line in lines for token in [*processor.encode(line), EOS]]
    assert store.read(0, store.tokens).tolist() == wanted
    assert store.sources == ("lines",)


def test_bad_input_ends_in_its_own_message(
    tasks: ModuleType, slimpajama: Path, tmp_path: Path, write_rows: WriteRows
):
    file = slimpajama / "train/chunk2/example_train_0.jsonl.zst"
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    store = tmp_path / "store"
    with pytest.raises(UserError, match=r"truncated_file: .*chunk2.*fetch it again"):
        cache(tasks.open_task("slimpajama", "train", slimpajama, TOKENIZER), store, lambda _: None)

    # With the whole file it ends.
    file.write_bytes(whole)
    cache(tasks.open_task("slimpajama", "train", slimpajama, TOKENIZER), store, lambda _: None)

    write_rows(file, [("text", "RedPajamaRecipes")])
    task = tasks.open_task("slimpajama", "train", slimpajama, TOKENIZER)
    with pytest.raises(UserError, match="unknown_set: .*line 1.*'RedPajamaRecipes'"):
        cache(task, tmp_path / "other", lambda line: None)


def test_missing_names_folders_and_tokenizers_are_refused(
    tasks: ModuleType, slimpajama: Path, tmp_path: Path
):
    with pytest.raises(UserError, match="no task 'shakespaere': the nearest is 'shakespeare'"):
        tasks.open_task("shakespaere", "train")
    with pytest.raises(UserError, match="the nearest is 'slimpajama_github'"):
        tasks.open_task("slimpajama_guthub", "train", slimpajama)
    with pytest.raises(UserError, match="no text found"):
        tasks.open_task("slimpajama", "train", tmp_path / "none", TOKENIZER)
    with pytest.raises(UserError, match=r"cannot read the tokenizer .*/tokenizer\.model"):
        tasks.open_task("slimpajama", "train", slimpajama)


def test_the_tokenizer_beside_the_corpus_is_taken(tasks: ModuleType, slimpajama: Path):
    (slimpajama / "tokenizer.model").write_bytes(TOKENIZER.read_bytes())
    assert tasks.open_task("slimpajama", "train", slimpajama).tokenizer.vocab_size == 1024


def test_a_mixture_of_several_tasks_is_a_store_with_a_set_for_each(
    tasks: ModuleType, tmp_path: Path
):
    tasks.seqio.MixtureRegistry.add(
        "two_sets", [("shakespeare_comedies", 1.0), ("shakespeare_histories", 3.0)]
    )
    task = tasks.open_task("two_sets", "validation")
    tasks.seqio.MixtureRegistry.remove("two_sets")
    assert task.mixture == "shakespeare_comedies=0.25,shakespeare_histories=0.75"
    store = cache(task, tmp_path, lambda line: None, Rules(layout="by_set"))
    parts = [tasks.open_task(name, "validation") for name in store.sources]
    wanted = [[row.tokens.tolist() for row in part.documents(0)] for part in parts]
    flat = [[token for tokens in part for token in tokens] for part in wanted]
    assert store.read(0, store.tokens).tolist() == flat[0] + flat[1]
    ids = store.source_ids(0, store.tokens).tolist()
    assert ids == [0] * len(flat[0]) + [1] * len(flat[1])


def test_other_vocabularies_and_failing_preprocessors_are_one_line(
    tasks: ModuleType, tmp_path: Path
):
    seqio = tasks.seqio
    (tmp_path / "a.txt").write_text("first\nsecond\n")

    def task(vocabulary, *steps):
        return seqio.Task(
            "mine",
            source=seqio.TextLineDataSource({"train": str(tmp_path / "a.txt")}),
            preprocessors=[lambda data: data.map(lambda line: {"targets": line}), *steps],
            output_features={"targets": seqio.Feature(vocabulary)},
        )

    def failing(data):
        check = tasks.tf.debugging.assert_equal
        return data.map(lambda x: {"targets": check(x["targets"], "first") or x["targets"]})

    pieces = seqio.SentencePieceVocabulary(str(TOKENIZER))
    for vocabulary in (seqio.ByteVocabulary(), seqio.PassThroughVocabulary(10)):
        with pytest.raises(UserError, match=f"have a {type(vocabulary).__name__}"):
            tasks.SeqioFileTask("mine", "train", task(vocabulary))
    with pytest.raises(UserError, match="has no split validation: it has train"):
        tasks.SeqioFileTask("mine", "validation", task(pieces))
    for steps in ([failing], [lambda data: data.map(lambda x: {"t": x["none"]})], []):
        with pytest.raises(UserError, match=r"task mine: .*a\.txt, document 1: .*preprocessors"):
            list(tasks.SeqioFileTask("mine", "train", task(pieces, *steps)).documents(0))


def test_the_task_with_own_sets_of_the_docs_is_cached(
    tasks: ModuleType,
    processor: sentencepiece.SentencePieceProcessor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/data.md").read_text(), re.DOTALL)
    (tmp_path / "tasks_of_the_docs.py").write_text(code)
    (tmp_path / "tokenizer.model").write_bytes(TOKENIZER.read_bytes())
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.tsv").write_text("1\tIn verse\n0\tIn prose\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    task = tasks.open_task("notes", "train", modules=["tasks_of_the_docs"])
    store = cache(task, tmp_path / "store", lambda line: None, Rules(layout="by_set"))
    wanted = [[*processor.encode(text), EOS] for text in ("In prose", "In verse")]
    assert store.sources == ("prose", "verse")
    assert store.read(0, store.tokens).tolist() == wanted[0] + wanted[1]


BAD_LINES = [
    b"{",
    b'{"text": "\\ud800", "meta": {"redpajama_set_name": "RedPajamaC4"}}',
    b"\xff",
    b'{"text": "", "meta": {"redpajama_set_name": "RedPajamaC4"}}',
]


def spoil(file: Path) -> None:
    """Puts a bad line before each of the first good ones and cuts the file's end off."""
    lines = zstandard.decompress(file.read_bytes()).splitlines()
    spoilt = [line for pair in zip(BAD_LINES, lines, strict=False) for line in pair]
    content = zstandard.compress(b"\n".join(spoilt + lines[len(BAD_LINES) :]))
    end = zstandard.compress(b"\n" + b"never read to its end " * 9)[:-9]
    file.write_bytes(content + end)


@pytest.mark.parametrize("name", ["slimpajama", "slimpajama_book"])
def test_seqio_and_native_tasks_yield_the_same_documents_and_faults(
    tasks: ModuleType, slimpajama: Path, name: str, registered_at: Callable[[Path], None]
):
    for file in slimpajama.glob("train/chunk*/*.zst"):
        spoil(file)
    registered_at(slimpajama)
    native = tasks.open_task(name, "train")
    assert isinstance(native, NativeTask)
    through_seqio = tasks.SeqioFileTask(name, "train", tasks.seqio.get_mixture_or_task(name))
    assert list(through_seqio.files) == list(native.files)
    assert through_seqio.sources == native.sources
    for index in range(len(native.files)):
        ours, seqios = list(native.documents(index)), list(through_seqio.documents(index))
        faults = [row for row in ours if isinstance(row, Fault)]
        assert [fault.kind for fault in faults] == [
            "bad_json",
            "lone_surrogate",
            "invalid_utf8",
            "empty_text",
            "truncated_file",
        ]
        assert faults == [row for row in seqios if isinstance(row, Fault)]
        pairs = [
            [(row.tokens.tolist(), row.source) for row in rows if not isinstance(row, Fault)]
            for rows in (ours, seqios)
        ]
        assert pairs[0] == pairs[1] != []


def test_tasks_with_other_steps_run_through_seqio(tasks: ModuleType, slimpajama: Path):
    seqio = tasks.seqio

    def upper_case(dataset):
        return dataset.map(
            lambda x: {**x, "targets": tasks.tf.strings.upper(x["targets"])},
        )

    def added(name: str, preprocessors, vocabulary, **feature):
        source = tasks.CorpusSource(SLIMPAJAMA, slimpajama, list(SLIMPAJAMA.sets))
        return seqio.Task(
            name,
            source=source,
            preprocessors=preprocessors,
            output_features={"targets": seqio.Feature(vocabulary, **feature)},
        )

    plain = seqio.SentencePieceVocabulary(str(TOKENIZER))
    steps = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]
    assert tasks.native_task("t", "train", added("plain", steps, plain)) is not None
    for task in (
        added("more_steps", [upper_case, *steps], plain),
        added("no_eos", steps[:1], plain),
        added("feature_without_eos", steps, plain, add_eos=False),
        added("extra_ids", steps, seqio.SentencePieceVocabulary(str(TOKENIZER), extra_ids=3)),
    ):
        assert tasks.native_task("t", "train", task) is None


USER_MODULE = """
import seqio
from data_pipelines.text.sources import SLIMPAJAMA
from data_pipelines.text.tasks import CorpusSource

seqio.TaskRegistry.add(
    "backwards",
    source=CorpusSource(SLIMPAJAMA, {folder!r}, ["book", "arxiv"]),
    preprocessors=[
        seqio.preprocessors.tokenize,
        lambda data: data.map(lambda x: {{**x, "targets": x["targets"][::-1]}}),
        seqio.preprocessors.append_eos,
    ],
    output_features={{"targets": seqio.Feature(seqio.SentencePieceVocabulary({tokenizer!r}))}},
)
"""


def test_several_processes_cache_a_task_of_the_users_own(
    tasks: ModuleType,
    processor: sentencepiece.SentencePieceProcessor,
    slimpajama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    module = USER_MODULE.format(folder=str(slimpajama), tokenizer=str(TOKENIZER))
    (tmp_path / "tasks_of_a_user.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    spoil(next(slimpajama.glob("train/chunk2/*.zst")))
    task = tasks.open_task("backwards", "train", modules=["tasks_of_a_user"])
    store = cache(task, tmp_path / "store", lambda line: None, Rules(True, 0.5), workers=2)
    names = {"RedPajamaBook", "RedPajamaArXiv"}
    for file in slimpajama.glob("train/chunk2/*.zst"):
        file.write_bytes(_without_bad_lines(file))
    wanted = [
        [*reversed(tokens[:-1]), EOS]
        for _, tokens in expected(processor, slimpajama, "train", names)
    ]
    assert store.read(0, store.tokens).tolist() == [t for doc in wanted for t in doc]
    with pytest.raises(UserError, match="cannot import no_such_module"):
        tasks.open_task("backwards", "train", modules=["no_such_module"])


def _without_bad_lines(file: Path) -> bytes:
    frame = zstandard.ZstdDecompressor().decompressobj()
    lines = frame.decompress(file.read_bytes()).splitlines()
    return zstandard.compress(b"\n".join(line for line in lines if line not in BAD_LINES))


def test_tokens_are_integers_that_numpy_knows(tasks: ModuleType, slimpajama: Path):
    task = tasks.open_task("slimpajama", "validation", slimpajama, TOKENIZER)
    (document,) = task.documents(0)
    assert document.tokens.dtype == np.int32
    assert (document.source, document.text_bytes) == (0, len("held out"))


def test_no_other_module_loads_tensorflow():
    names = ("text.plain", "text.folders", "store.store", "batches.mixture", "build.cache")
    modules = ", ".join(f"data_pipelines.{name}" for name in names)
    script = f"import sys, {modules}; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, cwd=ROOT)
