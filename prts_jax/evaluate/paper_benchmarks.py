"""The paper's eight benchmarks, as tasks of lm-evaluation-harness (arXiv 2405.15319, App. D)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NAME = "paper8"
AVERAGE = "average of seven"


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
      name: as the paper calls it.
      task: in the harness.
      metric: of the task's results.
      percent: whether it is a share, shown as a percentage.
      shots: examples in the prompt.
      why: what was chosen where the paper does not say.
    """

    name: str
    task: str
    metric: str
    percent: bool
    shots: int
    why: str

    @property
    def title(self) -> str:
        """Its row in a table of results."""
        return self.name if self.percent else f"{self.name} perplexity"


_ZERO = "the paper names no shots; 0 is the usual choice for base models of this size"
BENCHMARKS = (
    Benchmark("LAMBADA", "lambada_openai", "acc,none", True, 0, "OpenAI's version, as the paper"),
    Benchmark("ARC-challenge", "arc_challenge", "acc,none", True, 0, _ZERO),
    Benchmark("ARC-easy", "arc_easy", "acc,none", True, 0, _ZERO),
    Benchmark("LogiQA", "logiqa", "acc,none", True, 0, _ZERO),
    Benchmark("PIQA", "piqa", "acc,none", True, 0, _ZERO),
    Benchmark("SciQ", "sciq", "acc,none", True, 0, _ZERO),
    Benchmark("WinoGrande", "winogrande", "acc,none", True, 0, _ZERO),
    Benchmark(
        "Wikitext",
        "wikitext",
        "word_perplexity,none",
        False,
        0,
        "by word: it does not depend on the tokenizer",
    ),
)
"""The paper gives accuracies without saying whether they are normalised by length: `acc`, which is
not. Its average is over the seven accuracies."""


def average(results: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Returns the mean of the seven accuracies, in [0, 1]; None where one is missing."""
    values = [
        results.get(benchmark.task, {}).get(benchmark.metric)
        for benchmark in BENCHMARKS
        if benchmark.percent
    ]
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def definition() -> str:
    """Returns the table of what is run: benchmark, task, metric, shots, reason."""
    rows = [("benchmark", "task", "metric", "shots", "why")]
    rows += [(b.name, b.task, b.metric, str(b.shots), b.why) for b in BENCHMARKS]
    widths = [max(len(row[at]) for row in rows) for at in range(4)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)]
        lines.append("  ".join([*cells, row[4]]))
    return "\n".join(lines)
