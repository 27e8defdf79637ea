"""`prts generate` as a user meets it: text from flags or files, and refusals of one line."""

import io
import json
from pathlib import Path

import pytest

from prts_jax.cli import generate, run
from prts_jax.formats import convert
from tests.checkpoint.tiny import write_source
from tests.conftest import RunPrts
from tests.evaluate.conftest import words
from tests.evaluate.worded import WORDS, write_tokenizer
from tests.formats.foreign_models import save_transformers, shape

__all__ = ["words"]  # a fixture


def as_json(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, object]:
    capsys.readouterr()
    assert generate.main([*flags, "--json", "--tokens=6", "--dtype=float32"]) == 0
    actual: dict[str, object] = json.loads(capsys.readouterr().out)
    return actual


def refusal(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert run(generate.main, flags, "generate") == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    [line] = shown.err.strip().splitlines()
    return line


def test_a_prompt_comes_from_flag_file_or_standard_input(
    words: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = f"--checkpoint={words / 'model'}"
    actual = as_json(capsys, checkpoint, "--prompt=the cat sat")
    assert set(str(actual["text"]).split()) <= set(WORDS)
    (tmp_path / "prompt").write_text("the cat sat")
    file = as_json(capsys, checkpoint, f"--prompt_file={tmp_path / 'prompt'}")
    monkeypatch.setattr("sys.stdin", io.StringIO("the cat sat"))
    standard = as_json(capsys, checkpoint, "--prompt_file=-")
    assert actual["text"] == file["text"] == standard["text"]
    assert generate.main([checkpoint, "--prompt=the cat sat", "--tokens=6", "--dtype=float32"]) == 0
    assert capsys.readouterr().out == f"the cat sat{actual['text']}\n"


@pytest.mark.slow
def test_three_devices_that_divide_neither_width_nor_heads_generate_what_one_does(
    words: Path, run_prts: RunPrts, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (f"--checkpoint={words / 'model'}", "--prompt=the cat")
    done = run_prts("generate", *flags, "--json", "--tokens=6", "--dtype=float32", devices=3)
    assert json.loads(done.stdout)["tokens"] == as_json(capsys, *flags)["tokens"]


def test_a_prompts_line_breaks_stay_as_they_are(
    words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompt").write_bytes(b"the\r\ncat")
    flags = (f"--checkpoint={words / 'model'}", f"--prompt_file={tmp_path / 'prompt'}")
    assert as_json(capsys, *flags)["prompt"] == "the\r\ncat"


def test_the_start_token_comes_first_on_request(
    words: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = f"--checkpoint={words / 'model'}"
    alone = as_json(capsys, checkpoint, "--prompt=cat sat")
    asked = as_json(capsys, checkpoint, "--prompt=cat sat", "--add_bos_token")
    typed = as_json(capsys, checkpoint, "--prompt=<s> cat sat")
    assert asked["tokens"] == typed["tokens"] != alone["tokens"]


FLAGS = {
    "temperature below 0": (["--prompt=a", "--temperature=-1"], "temperature: is -1.0"),
    "temperature nan": (
        ["--prompt=a", "--temperature=nan"],
        "--temperature: nan is not a finite number",
    ),
    "top_p of 0": (["--prompt=a", "--top_p=0"], "top_p: is 0.0; it must be above 0 and at most 1"),
    "top_p above 1": (["--prompt=a", "--top_p=1.5"], "top_p: is 1.5"),
    "seed": (["--prompt=a", f"--seed={2**63}"], "it must be a 64-bit integer"),
    "not UTF-8": (["--prompt=a\udcff"], "prompt: holds bytes that are not UTF-8"),
    "no tokens": (["--prompt=a", "--tokens=0"], "--tokens=0: must be at least 1"),
    "dtype": (["--prompt=a", "--dtype=x"], "argument --dtype: invalid choice: 'x'"),
    "no prompt": ([], "--prompt, --prompt_file, --instruction: give one of them"),
    "prompt and instruction": (["--prompt=a", "--instruction=b"], "give one of them"),
    "system alone": (["--prompt=a", "--system=s"], "--system: goes with --instruction"),
    "two prompts": (["--prompt=a", "--prompt_file=b"], "give one of them"),
    "no such file": (["--prompt_file=/no/such"], "--prompt_file=/no/such: cannot be read"),
    "no such home": (["--prompt_file=~nobody_at_all/x"], "/x: cannot be read"),
    "another scheme": (["--prompt_file=s3://b/x"], "paths of s3:// are not supported"),
    "no such checkpoint": (["--prompt=a"], "/no/checkpoint: "),
}


@pytest.mark.parametrize("case", FLAGS)
def test_flags_out_of_range_are_refused_in_one_line(
    case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, message = FLAGS[case]
    assert message in refusal(capsys, "--checkpoint=/no/checkpoint", *flags)


@pytest.mark.slow
def test_greedy_tokens_equal_those_of_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An import whose vocabulary is larger than its tokenizer and that has several end ids."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = shape()
    save_transformers(tmp_path / "hf", model)
    write_tokenizer(tmp_path / "hf")
    pieces = len(WORDS) + 2
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    given = torch.tensor([[2 + WORDS.index(word) for word in ("the", "cat", "sat")]])
    mask = torch.ones_like(given)

    def greedy(ends: list[int]) -> list[int]:
        options = {"do_sample": False, "eos_token_id": ends, "pad_token_id": 0}
        options |= {"suppress_tokens": list(range(pieces, model.vocab)), "max_new_tokens": 12}
        row = theirs.generate(given, attention_mask=mask, **options)[0].tolist()
        return list(row[given.shape[1] :])

    whole = greedy([1])
    ends = [1, whole[5]]
    file = tmp_path / "hf" / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": ends}))
    source = convert.open_source("hf", str(tmp_path / "hf"))
    convert.write_checkpoint(source, str(tmp_path / "ours"))
    flags = (f"--checkpoint={tmp_path / 'ours'}", "--prompt=the cat sat", "--json")
    assert generate.main([*flags, "--tokens=12", "--dtype=float32"]) == 0
    actual = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    expected = greedy(ends)
    assert actual["tokens"] == expected[:-1] == whole[: whole.index(whole[5])]


def test_a_checkpoint_without_tokenizer_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_source(tmp_path / "bare")
    line = refusal(capsys, f"--checkpoint={tmp_path / 'bare'}", "--prompt=a")
    assert "no tokenizer in" in line
    assert "--tokenizer" in line


def test_prompt_and_text_fit_a_training_row(
    words: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = f"--checkpoint={words / 'model'}"
    line = refusal(capsys, checkpoint, "--prompt=" + "cat " * 16)
    assert "prompt: has 16 tokens, and the model was trained on rows of 16; shorten it" in line
    assert generate.main([checkpoint, "--prompt=" + "cat " * 13, "--json"]) == 0
    shown = capsys.readouterr()
    assert len(json.loads(shown.out)["tokens"]) <= 3
    assert "at most 3 tokens" in shown.err
