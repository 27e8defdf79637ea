"""Our models under lm-evaluation-harness against its own `hf` model of the exported checkpoint."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prts_jax.cli import eval as eval_command
from prts_jax.cli import run
from prts_jax.config import ModelConfig
from prts_jax.errors import UserError
from prts_jax.evaluate import paper_benchmarks, task_files
from prts_jax.formats import convert
from tests.formats.foreign_models import save_transformers

torch = pytest.importorskip("torch")
pytest.importorskip("lm_eval")
tokenizers = pytest.importorskip("tokenizers")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from lm_eval.tasks._index import TaskIndex  # noqa: E402

from prts_jax.evaluate import harness  # noqa: E402

pytestmark = pytest.mark.slow

MODEL = ModelConfig(vocab=300, layers=2, embed=16, heads=4, kv_heads=2, head_dim=8, mlp=24)
README = (Path(__file__).parents[2] / "README.md").read_text()
WORDS = README.split()[:400]
TASK = """
task: local_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
metadata:
  version: 3
"""
TEXT_TASK = """
task: local_text
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
should_decontaminate: false
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
metadata:
  version: 1
"""


@pytest.fixture(scope="module", autouse=True)
def _task_files_are_indexed_once() -> Iterator[None]:
    """Shares the index of the harness's thousands of task files between commands."""
    build, known = TaskIndex.build, {}

    def shared(paths: Any) -> dict[str, Any]:
        for path in paths:
            if path not in known:
                known[path] = build([path])
        return {name: entry for path in paths for name, entry in known[path].items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskIndex, "build", staticmethod(shared))
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`hf`, a tiny model with a tokenizer; `ours`, the same imported; `tasks`, two tasks."""
    root = tmp_path_factory.mktemp("harness")
    # The tokenizer's ids below: by default "!" would end a text, which the harness's model keeps.
    save_transformers(root / "hf", MODEL, bos_token_id=0, eos_token_id=1)
    built = tokenizers.Tokenizer(tokenizers.models.BPE())
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=MODEL.vocab,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    built.train_from_iterator([README], trainer)
    built.save(str(root / "hf" / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (root / "hf" / "tokenizer_config.json").write_text(json.dumps(config))
    convert.write_checkpoint(convert.open_source("hf", str(root / "hf")), str(root / "ours"))
    rows = [
        {"question": " ".join(WORDS[at : at + 9]), "choices": WORDS[at + 9 : at + 13], "answer": 0}
        for at in range(0, 200, 13)
    ]
    (root / "tasks").mkdir()
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "tasks" / "local.yaml").write_text(TASK.format(data=root / "rows.jsonl"))
    (root / "tasks" / "text.yaml").write_text(TEXT_TASK.format(data=root / "rows.jsonl"))
    return root


@pytest.fixture(scope="module")
def ours(folders: Path) -> Any:
    return harness.HarnessModel(str(folders / "ours"), dtype="float32", batch_size=4)


@pytest.fixture(scope="module")
def theirs(folders: Path) -> Any:
    return HFLM(
        pretrained=str(folders / "hf"), device="cpu", dtype="float32", batch_size=4, max_length=64
    )


def requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, values, at) for at, values in enumerate(arguments)]


def test_log_likelihoods_equal_the_hf_models(ours: Any, theirs: Any) -> None:
    rng = np.random.default_rng(0)
    pairs = [("", " " + WORDS[0]), ("ends in a space ", "word"), (" ".join(WORDS[:60]), " a b c")]
    for _ in range(20):
        start, length, more = rng.integers(0, 300), rng.integers(1, 30), rng.integers(1, 5)
        context = " ".join(WORDS[start : start + length])
        after = WORDS[start + length : start + length + more]
        pairs.append((context, " " + " ".join(after)))
    actual = ours.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    expected = theirs.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    np.testing.assert_allclose([f[0] for f in actual], [e[0] for e in expected], atol=1e-3)
    assert [f[1] for f in actual] == [e[1] for e in expected]


def test_rolling_log_likelihoods_equal_the_hf_models(ours: Any, theirs: Any) -> None:
    texts = [(" ".join(WORDS[:n]),) for n in (1, 20, 150)]  # the last takes several windows
    actual = ours.loglikelihood_rolling(requests("loglikelihood_rolling", texts), disable_tqdm=True)
    expected = theirs.loglikelihood_rolling(
        requests("loglikelihood_rolling", texts), disable_tqdm=True
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_generated_texts_equal_the_hf_models(ours: Any, theirs: Any) -> None:
    options = {"until": ["e"], "max_gen_toks": 12, "do_sample": False}
    prompts = [(" ".join(WORDS[at : at + 5]), dict(options)) for at in (0, 9, 30)]
    actual = ours.generate_until(requests("generate_until", prompts), disable_tqdm=True)
    expected = theirs.generate_until(requests("generate_until", prompts), disable_tqdm=True)
    assert actual == expected
    assert not any("e" in text for text in actual)


def test_the_start_token_comes_first_as_in_the_hf_model(folders: Path, theirs: Any) -> None:
    """With add_bos_token; a text that begins with the token gets no second one."""
    ours = harness.HarnessModel(str(folders / "ours"), dtype="float32", add_bos_token=True)
    hf = HFLM(pretrained=theirs.model, tokenizer=str(folders / "hf"), add_bos_token=True)
    hf._max_length = theirs.max_length
    pairs = [("", " " + WORDS[0]), ("<s>" + WORDS[1], " a"), (" ".join(WORDS[:20]), " a b c")]
    texts = [(" ".join(WORDS[:n]),) for n in (1, 20, 150)]
    for kind, arguments in (("loglikelihood", pairs), ("loglikelihood_rolling", texts)):
        given = requests(kind, arguments)
        actual, expected = (getattr(m, kind)(given, disable_tqdm=True) for m in (ours, hf))
        np.testing.assert_allclose(np.array(actual), np.array(expected), rtol=1e-4)
    options = {"until": [], "max_new_tokens": 8}
    given = requests("generate_until", [(" ".join(WORDS[:5]), options)])
    actual, expected = (m.generate_until(given, disable_tqdm=True) for m in (ours, hf))
    assert actual == expected


def test_texts_end_at_every_end_id(folders: Path, tmp_path: Path, theirs: Any) -> None:
    prompt, tokens = " ".join(WORDS[:5]), 12
    given = requests("generate_until", [(prompt, {"until": [], "max_gen_toks": tokens})])
    ids = torch.tensor([theirs.tok_encode(prompt)])
    options = {"max_new_tokens": tokens, "do_sample": False}
    # The ids themselves: bytes that are no UTF-8 would not encode to what they were decoded from.
    generated = theirs.model.generate(ids, **options)[0, ids.shape[1] :].tolist()
    last = generated[tokens // 2]
    ends_after = generated.index(last)
    shutil.copytree(folders / "hf", tmp_path / "hf")
    generation = tmp_path / "hf" / "generation_config.json"
    values = json.loads(generation.read_text()) | {"eos_token_id": [1, last]}
    generation.write_text(json.dumps(values))
    source = convert.open_source("hf", str(tmp_path / "hf"))
    convert.write_checkpoint(source, str(tmp_path / "ours"))
    hf = HFLM(pretrained=str(tmp_path / "hf"), device="cpu", dtype="float32", max_length=64)
    ours = harness.HarnessModel(str(tmp_path / "ours"), dtype="float32")
    actual, expected = (m.generate_until(given, disable_tqdm=True) for m in (ours, hf))
    assert actual == [theirs.tok_decode(generated[:ends_after])]
    assert actual[0] == expected[0].removesuffix(theirs.tok_decode([last]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_lenght": 64}, "'max_lenght' is unknown; did you mean 'max_length'?"),
        ({"max_length": "long"}, "max_length='long': give a number above 0"),
        ({"batch_size": 0}, "batch_size=0: give a number above 0"),
        ({"add_bos_token": "maybe"}, "add_bos_token='maybe': give True or False"),
        ({"dtype": "float16"}, "dtype='float16': give bfloat16 or float32"),
        ({"checkpoint": ""}, "checkpoint=DIR is missing"),
    ],
)
def test_unknown_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        harness.HarnessModel(**{"checkpoint": "c"} | arguments)
    assert message in str(refusal.value)


def test_task_scores_equal_the_hf_models(
    folders: Path, theirs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from lm_eval import simple_evaluate

    flags = ["--tasks=local_choice", f"--include_path={folders / 'tasks'}", "--dtype=float32"]
    assert eval_command.main([f"--checkpoint={folders / 'ours'}", *flags, "--json"]) == 0
    actual = json.loads(capsys.readouterr().out)["tasks"]["local_choice"]
    manager = TaskManager(include_path=str(folders / "tasks"))
    expected = simple_evaluate(theirs, tasks=["local_choice"], task_manager=manager)
    for metric in ("acc,none", "acc_norm,none"):
        assert actual[metric] == expected["results"]["local_choice"][metric]
    for error in ("acc_stderr,none", "acc_norm_stderr,none"):
        assert actual[error] == pytest.approx(expected["results"]["local_choice"][error])
    assert actual["version"] == 3
    assert actual["shots"] == 0


def test_word_perplexity_has_an_interval_and_is_compared(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two evaluations of one checkpoint: the same requests in another precision, and fewer."""
    flags = [f"--checkpoint={folders / 'ours'}", "--tasks=local_text,local_choice"]
    flags.append(f"--include_path={folders / 'tasks'}")
    runs = {"full": ["--dtype=float32"], "half": ["--dtype=bfloat16"], "few": ["--limit=5"]}
    for name, extra in runs.items():
        argv = [*flags, *extra, f"--save={tmp_path / name}.json", "--json"]
        assert eval_command.main(argv) == 0
        actual = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["tasks"]["local_text"]
        assert actual["word_perplexity,none"] > 1
        assert actual["word_perplexity_stderr,none"] > 0
        assert 0 < actual["bits_per_byte_stderr,none"] < actual["bits_per_byte,none"]
    assert eval_command.main(["--compare", *(f"{tmp_path / n}.json" for n in runs), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    by_name = {(row["group"], row["name"]): row for row in rows}
    _, half, few = by_name["local_text", "word_perplexity,none"]["differences"]
    assert (half["paired"], few["paired"]) == (True, False)
    assert half["stderr"] < few["stderr"]  # what makes a text hard is hard in both precisions
    _, half, few = by_name["local_choice", "acc,none"]["differences"]
    assert (half["paired"], few["paired"]) == (True, False)


def test_the_papers_tasks_exist_and_name_their_downloads(
    folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = TaskManager().all_tasks
    assert all(benchmark.task in known for benchmark in paper_benchmarks.BENCHMARKS)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    argv = [f"--checkpoint={folders / 'ours'}", "--tasks=piqa", "--limit=1"]
    assert run(eval_command.main, argv, "eval") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--tasks=piqa: its data could not be loaded" in error
    assert "--include_path" in error


def test_an_unknown_task_is_refused_before_the_harness_reads_its_tasks(
    folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "Tasks", None)
    argv = [f"--checkpoint={folders / 'ours'}", "--tasks=arc_easy,arc_eazy"]
    assert run(eval_command.main, argv, "eval") == 2
    assert "'arc_eazy' is unknown; did you mean 'arc_easy'?" in capsys.readouterr().err


def test_every_task_of_the_harness_is_mentioned_in_its_files() -> None:
    words: set[bytes] = set()
    for text in task_files.contents():
        words.update(re.findall(rb"[\w.+-]+", text))
    other = [name for name in harness.Tasks().all_tasks if name.encode() not in words]
    assert len(other) < 20
    task_files.check_mentioned(other)


def test_an_unknown_task_names_the_nearest(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [f"--checkpoint={folders / 'ours'}", "--tasks=arc_eazy"]
    assert run(eval_command.main, argv, "eval") == 2
    assert "'arc_eazy' is unknown; did you mean 'arc_easy'?" in capsys.readouterr().err
