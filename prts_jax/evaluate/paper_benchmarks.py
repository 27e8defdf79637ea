"""The paper's eight benchmarks, as tasks of lm-evaluation-harness (arXiv 2405.15319, App. D)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prts_jax.text_table import align

FLAG = "paper8"
"""The value of `--tasks` that stands for all eight."""
AVERAGE = "average of seven"


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
      task: the harness's name.
      metric: key of the task's results.
      percent: whether the score is a share, shown as a percentage.
      why: the reason for a choice that the paper leaves open.
    """

    name: str
    task: str
    metric: str
    percent: bool
    shots: int
    why: str

    @property
    def title(self) -> str:
        """The name of its row in a table of results."""
        return self.name if self.percent else f"{self.name} perplexity"


def _accuracy(name: str, task: str, why: str = "") -> Benchmark:
    zero = "the paper names no shots; 0 is the usual choice for base models of this size"
    return Benchmark(name, task, "acc,none", True, 0, why or zero)


BENCHMARKS = (
    _accuracy("LAMBADA", "lambada_openai", "OpenAI's version, as the paper"),
    _accuracy("ARC-challenge", "arc_challenge"),
    _accuracy("ARC-easy", "arc_easy"),
    _accuracy("LogiQA", "logiqa"),
    _accuracy("PIQA", "piqa"),
    _accuracy("SciQ", "sciq"),
    _accuracy("WinoGrande", "winogrande"),
    Benchmark(
        "Wikitext",
        "wikitext",
        "word_perplexity,none",
        False,
        0,
        "per word, which does not depend on the tokenizer",
    ),
)
"""The paper does not say whether its accuracies are normalised by length: these (`acc`) are not.
Its average is over the seven accuracies."""


def average(results: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Returns the mean of the seven accuracies, in [0, 1]; None if one is missing."""
    values = [
        results.get(benchmark.task, {}).get(benchmark.metric)
        for benchmark in BENCHMARKS
        if benchmark.percent
    ]
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def definition() -> str:
    """Returns a table of the benchmarks: name, task, metric, shots, reason."""
    rows = [("benchmark", "task", "metric", "shots", "why")]
    rows += [(b.name, b.task, b.metric, str(b.shots), b.why) for b in BENCHMARKS]
    return "\n".join(align(rows, text_columns=5))
