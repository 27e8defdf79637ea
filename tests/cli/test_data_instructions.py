"""`prts data instructions`: stores in the tokens of either library's tokenizer; what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.store.store import TokenStore
from data_pipelines.store.verify import verify
from data_pipelines.text.sources import EMBEDDED_SHAKESPEARE
from prts_jax.cli import data
from prts_jax.errors import UserError
from prts_jax.evaluate.tokenizer import open_tokenizer, tokenizer_file
from tests.instruction_data import ANSWERS, WORDS, many, write_lines

SENTENCEPIECE = EMBEDDED_SHAKESPEARE / "tokenizer.model"
Prepare = Callable[..., Path]


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    """`prepare(rows, *flags, tokenizer=…)` runs the command and returns the stores' folder."""

    def run(rows: list[Any], *flags: str, tokenizer: Path = SENTENCEPIECE) -> Path:
        file = write_lines(tmp_path / "rows.jsonl", rows)
        output = tmp_path / "stores"
        arguments = [f"--input={file}", f"--tokenizer={tokenizer}", f"--output={output}"]
        data.main(["instructions", *arguments, "--length=128", *flags])
        return output

    return run


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A folder with a tokenizer.json of whole words, as transformers writes it."""
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    folder = tmp_path / "words"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "</s>", "chat_template": "{{ messages }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def texts_of(store: TokenStore) -> list[str]:
    """Returns the text of each answer of a store, decoded by its tokenizer."""
    tokenizer = open_tokenizer(tokenizer_file(store.directory))
    tokens, answers = store.read(0, store.tokens), store.read_answers([(0, store.tokens)])[0]
    texts, current = [], []
    for token in tokens[answers].tolist():
        if token == tokenizer.eos:
            texts.append(tokenizer.decode(current))
            current = []
        else:
            current.append(token)
    return sorted(texts)


def answers_of(rows: list[Any]) -> list[str]:
    actual = [row["output"] for row in rows if "output" in row]
    for row in rows:
        turns = row.get("messages", [])
        actual += [turn["content"] for turn in turns if turn["role"] == "assistant"]
    return sorted(actual)


def test_the_stores_own_tokenizer_decodes_its_answers(
    prepare: Prepare, capsys: pytest.CaptureFixture[str]
):
    store = TokenStore.open(prepare(ANSWERS) / "train")
    assert texts_of(store) == answers_of(ANSWERS)
    verify(store.directory)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith(f"{store.directory}: 4 examples in ")
    assert "### Instruction:" in shown[1]
    assert len(shown) == 2


@pytest.mark.parametrize("transformers", [4, 5])
def test_a_hugging_face_tokenizer_is_stored_and_its_template_unused(
    prepare: Prepare, words: Path, capsys: pytest.CaptureFixture[str], transformers: int
):
    if transformers == 5:  # which keeps it in a file of its own
        (words / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
        (words / "chat_template.jinja").write_text("{{ messages }}")
    store = TokenStore.open(prepare(ANSWERS, tokenizer=words) / "train")
    assert store.vocab_size == len(WORDS)
    assert texts_of(store) == answers_of(ANSWERS)
    verify(store.directory)
    assert capsys.readouterr().out.splitlines()[-1] == f"the chat_template of {words} is not used"


def test_rows_are_held_out(prepare: Prepare):
    output = prepare(many(60), "--held_out=0.3", "--length=512")
    train, held = (TokenStore.open(output / split) for split in ("train", "validation"))
    assert sorted([*texts_of(train), *texts_of(held)]) == answers_of(many(60))
    assert texts_of(held)


def test_a_bad_row_is_one_line_with_its_place(run_prts: Callable[..., Any], tmp_path: Path):
    file = write_lines(tmp_path / "rows.jsonl", [*ANSWERS, {"messages": []}])
    done = run_prts(
        "data",
        "instructions",
        f"--input={file}",
        f"--tokenizer={SENTENCEPIECE}",
        f"--output={tmp_path / 'out'}",
        "--length=64",
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"prts data: no_answer: {file}, line 5: no assistant answers")
    assert not (tmp_path / "out/train/index.json").exists()


def test_bad_instruction_input_is_refused(prepare: Prepare, words: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"--length=1: give at least 2"):
        prepare(ANSWERS, "--length=1")
    with pytest.raises(
        UserError, match=r"no tokenizer in .*tokenizer\.json and no tokenizer\.model"
    ):
        prepare(ANSWERS, tokenizer=tmp_path)
    (words / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="does not say which token ends a document"):
        prepare(ANSWERS, tokenizer=words)
    (words / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is JSON but no tokenizer"):
        prepare(ANSWERS, tokenizer=words)
    assert not (tmp_path / "stores").exists()
