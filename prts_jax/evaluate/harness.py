"""lm-evaluation-harness with our models: `prts eval --tasks` and `prts-lm-eval --model prts`.

The harness (0.4.13) has no entry point for models of other packages, so the console script
`prts-lm-eval` registers ours and then runs `lm_eval`.
Source: https://github.com/EleutherAI/lm-evaluation-harness, docs/interface.md, model_guide.md.
"""

import math
import sys
from collections.abc import Sequence
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from prts_jax.config import nearest
from prts_jax.errors import UserError, first_line, one_line
from prts_jax.evaluate.generate import Generator, Sampling
from prts_jax.evaluate.loaded import DTYPES, LoadedModel, load
from prts_jax.evaluate.scores import Scores, from_harness
from prts_jax.evaluate.scoring import Scorer
from prts_jax.evaluate.task_files import unknown
from prts_jax.evaluate.tokenizer import CheckpointTokenizer, tokenizer_of

ARGUMENTS = (
    "checkpoint",
    "tokenizer",
    "dtype",
    "batch_size",
    "max_length",
    "weights",
    "add_bos_token",
    "layers",
)
"""Arguments of the model, for `--model_args`."""


@register_model("prts")
class HarnessModel(TemplateLM):  # type: ignore[misc]  # the harness is not typed
    """A checkpoint as a model of the harness: log-likelihoods and generated text."""

    def __init__(
        self,
        checkpoint: str = "",
        tokenizer: str = "",
        dtype: str = "bfloat16",
        batch_size: int | str = 16,
        max_length: int | str = 0,
        add_bos_token: bool = False,
        layers: str = "",
        weights: str = "params",
        device: Any = None,
        max_batch_size: Any = None,
        **unknown: Any,
    ) -> None:
        """Loads a checkpoint; arguments may come from `--model_args name=value,…`.

        `add_bos_token` puts the start token before every text that does not begin with it, as the
        harness's own model `hf` does with this argument. `device` and `max_batch_size` are the
        harness's and ignored; others are refused.

        Raises:
          UserError: an unknown argument or value, no such checkpoint, or no tokenizer.
        """
        super().__init__()
        for name in unknown:
            raise UserError(f"--model_args: {name!r} is unknown; {nearest(name, ARGUMENTS)}")
        rows = 16 if str(batch_size).startswith("auto") else _count("batch_size", batch_size)
        longest = _count("max_length", max_length) if max_length else 0
        if not checkpoint:
            raise UserError("--model_args: checkpoint=DIR is missing")
        if dtype not in DTYPES:
            raise UserError(f"--model_args: dtype={dtype!r}: give {' or '.join(DTYPES)}")
        if not isinstance(add_bos_token, bool):
            raise UserError(f"--model_args: add_bos_token={add_bos_token!r}: give True or False")
        self._loaded: LoadedModel = load(
            str(checkpoint), dtype, layers=str(layers), weights=str(weights)
        )
        lineage = self._loaded.lineage
        self._tokenizer: CheckpointTokenizer = tokenizer_of(self._loaded.path, lineage, tokenizer)
        self._begin_texts = add_bos_token
        self._note_begin()
        self.max_length = longest or self._loaded.length
        # The harness's "auto" would measure the memory of a torch GPU.
        self.batch_size = rows
        self._scorer = Scorer(self._loaded, self.batch_size, self.max_length)
        self._generator = Generator(
            self._loaded.params, self._loaded.model, self._loaded.compute, self._tokenizer.pieces
        )

    def _note_begin(self) -> None:
        if self._tokenizer.begins and not self._begin_texts:
            print(
                "prts: texts are scored without the start token; the harness's model hf adds it "
                "with this tokenizer, and so does add_bos_token here",
                file=sys.stderr,
            )

    @property
    def eot_token_id(self) -> int:
        """Id of the end token, or of the start token if there is none."""
        for token in (self._tokenizer.eos, self._tokenizer.bos):
            if token is not None:
                return token
        raise UserError(f"{self._tokenizer.path}: has neither a start nor an end token")

    @property
    def prefix_token_id(self) -> int:
        """Id of the token for an empty context: the start token, or the end token without one."""
        return self.eot_token_id if self._tokenizer.bos is None else self._tokenizer.bos

    @property
    def tokenizer_name(self) -> str:
        """Key of the harness's cache of requests."""
        return self._tokenizer.path.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **ignored: Any
    ) -> list[int]:
        """Returns the ids of a text; the start token comes first if the model or caller asks."""
        tokens = self._tokenizer.encode(string)
        begin = self._tokenizer.bos
        wanted = self._begin_texts if add_special_tokens is None else add_special_tokens
        if not wanted or begin is None or (add_special_tokens is None and tokens[:1] == [begin]):
            return tokens
        return [begin, *tokens]

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **ignored: Any,
    ) -> list[tuple[float, bool]]:
        with tqdm(
            total=len(requests), desc="log-likelihoods", unit="request", disable=disable_tqdm
        ) as bar:
            scores = self._scorer.score([(r[1], r[2]) for r in requests], bar.update)
        for (texts, _, _), answer in zip(requests, scores, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return scores

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Returns the log-likelihoods of whole texts, scored in disjoint windows."""
        owners, windows = [], []
        for at, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for pair in get_rolling_token_windows(
                tokens, self.prefix_token_id, self.max_length, context_len=1
            ):
                owners.append(at)
                windows.append((None, *make_disjoint_window(pair)))
        totals = [0.0] * len(requests)
        scores = self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)
        for at, (score, _) in zip(owners, scores, strict=True):
            totals[at] += score
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Returns continuations, each up to the first of its stop texts."""
        texts = [""] * len(requests)
        encoded = [self._prompt(*request.args) for request in requests]
        order = sorted(range(len(requests)), key=lambda at: -len(encoded[at][0]))
        with tqdm(total=len(requests), desc="texts", unit="request", disable=disable_tqdm) as bar:
            for at in order:
                prompt, options = encoded[at]
                texts[at] = self._until(prompt, options)
                self.cache_hook.add_partial("generate_until", requests[at].args, texts[at])
                bar.update(1)
        return texts

    def _prompt(self, context: str, options: dict[str, Any]) -> tuple[list[int], dict[str, Any]]:
        tokens = self.tok_encode(context) or [self.prefix_token_id]
        # The harness's own reading of the options: their other names and their defaults.
        options = normalize_gen_kwargs(options)
        room = self.max_length - options["max_gen_toks"]
        if room < 1:
            raise UserError(
                f"max_gen_toks={options['max_gen_toks']}: leaves no room for a prompt in rows of "
                f"{self.max_length} tokens; lower it, or raise max_length"
            )
        return tokens[-room:], options

    def _until(self, prompt: list[int], options: dict[str, Any]) -> str:
        import jax

        stops = [stop for stop in options["until"] if stop]
        drawing = options["do_sample"]
        sampling = Sampling(
            float(options.get("temperature", 1.0)) if drawing else 0.0,
            float(options.get("top_p", 1.0)) if drawing else 1.0,
        )
        ends = self._tokenizer.ends | {self.eot_token_id}
        tokens: list[int] = []
        text = ""
        with jax.set_mesh(self._loaded.mesh):
            stream = self._generator.stream([prompt], options["max_gen_toks"], ends, sampling)
            for row in stream:
                if int(row[0]) in ends:
                    break
                tokens.append(int(row[0]))
                text = self._tokenizer.decode(tokens)
                if any(stop in text for stop in stops):
                    break
        for stop in stops:
            text = text.split(stop)[0]
        return text


def _count(name: str, value: int | str) -> int:
    if str(value).isdecimal() and int(value) > 0:
        return int(value)
    raise UserError(f"--model_args: {name}={value!r}: give a number above 0")


class Tasks(TaskManager):  # type: ignore[misc]  # the harness is not typed
    """The harness's tasks, with one-line errors for unknown names and missing data."""

    def check(self, names: Sequence[str]) -> None:
        """Raises UserError for an unknown task, with similar names."""
        for name in names:
            if name not in self.all_tasks:
                raise unknown(name, self.all_tasks)

    def load(self, tasks: Sequence[str]) -> Any:
        """Loads tasks and their data.

        Raises:
          UserError: the data cannot be loaded.
        """
        try:
            return super().load(tasks)
        except Exception as error:  # each library below raises its own errors
            raise UserError(
                f"--tasks={','.join(tasks)}: its data could not be loaded ({first_line(error)}); "
                f"it comes from the Hugging Face hub ({self._data_set(tasks[0])}): run once with "
                "network access, or give task files over local data with --include_path"
            ) from error

    def _data_set(self, task: str) -> str:
        """Returns the data set that a task downloads, from its YAML file."""
        try:
            config = self._get_config(task)
            return " ".join(filter(None, (config.get("dataset_path"), config.get("dataset_name"))))
        except Exception:  # only a hint depends on it
            return "its page in the harness names it"


def run_tasks(
    model: HarnessModel,
    manager: Tasks,
    tasks: Sequence[str],
    shots: int | None = None,
    limit: int | None = None,
) -> tuple[dict[str, dict[str, Any]], list[Scores]]:
    """Runs tasks of the harness, whose names `manager.check` has passed.

    Returns the results of each task, subtask and group, with version and shots; and the scores of
    their requests.

    Raises:
      UserError: a task's data cannot be loaded.
    """
    results: dict[str, dict[str, Any]] = {}
    scores: list[Scores] = []
    for task in tasks:
        output = simple_evaluate(
            model=model,
            tasks=[task],
            task_manager=manager,
            num_fewshot=shots,
            limit=limit,
            log_samples=True,
            bootstrap_iters=0,
        )
        for name, values in output["results"].items():
            about = {"version": output["versions"].get(name), "shots": output["n-shot"].get(name)}
            of_task = from_harness(name, values, output["samples"].get(name, []), **about)
            results[name] = about | _with_errors(values, of_task)
            scores += of_task
    return results, scores


def _with_errors(values: dict[str, Any], scores: Sequence[Scores]) -> dict[str, Any]:
    """Returns a task's metrics, each followed by its standard error where there is one."""
    stderrs = {one.name: one.estimate.stderr for one in scores}
    kept: dict[str, Any] = {}
    for key, value in values.items():
        metric, _, name = key.partition(",")
        if key != "alias" and not metric.endswith("_stderr"):
            kept[key] = value
            if math.isfinite(stderrs.get(key, math.nan)):
                kept[f"{metric}_stderr,{name}"] = stderrs[key]
    return kept


def main() -> int:
    """Runs the console script `prts-lm-eval`: `lm_eval` with `--model prts`."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except UserError as error:
        print(f"prts-lm-eval: {one_line(str(error))}", file=sys.stderr)
        return 2
    return 0
