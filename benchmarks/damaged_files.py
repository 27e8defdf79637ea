"""Damages every kind of file of a run's newest checkpoint, resumes, and compares bit for bit.

A small run in two stages with growth is trained undisturbed. Each case copies it as it was before
its last steps, damages one file of the newest checkpoint (a flipped bit, the second half cut off,
emptied, deleted), starts the same run again and compares the end with the undisturbed one: metrics,
parameters, optimizer state, position and totals. "moved aside" and "unaffected" ended the same;
"refused" ended in one line; everything else is a fault.

    python benchmarks/damaged_files.py --folder=DIR [--seed=0] [--flips=2] [--cases=N]

Prints a table and, with --json, the tally and the faults as one JSON object.
"""

import argparse
import collections
import json
import random
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from prts_jax.checkpoint.layout import read_lineage
from prts_jax.config import RunConfig
from prts_jax.errors import StorageError, UserError
from prts_jax.train.loop import train
from prts_jax.train.metrics import read_metrics
from tests.train import tiny

DAMAGES = ("flip", "cut", "empty", "delete")
GOOD = ("moved aside", "unaffected", "refused")
LAST, SAVED = 8, 6
"""Steps of the run, and of the newest checkpoint when a case begins."""


class Case(NamedTuple):
    """One damage of one file; `file` is relative to the checkpoint."""

    file: str
    damage: str
    seed: int


def kind(file: str) -> str:
    """Returns a file's kind: its path without random names."""
    return re.sub(r"/d/[0-9a-f]{32}$", "/d/*", file)


def undisturbed(folder: Path) -> RunConfig:
    """Trains the run to its end in `folder/whole` and returns its config."""
    store = tiny.write_store(folder / "store")
    stages = ({"steps": 4, "model": {"layers": 1}}, {"steps": LAST - 4})
    config = tiny.run_config(
        data__train=str(store.directory),
        data__validation=str(store.directory),
        growth__stages=stages,
        checkpoint__keep=10,
        evaluation__tokens=200,
    )
    train(config, str(folder / "whole"))
    return config


def before_the_end(folder: Path, name: str = "case") -> Path:
    """Copies the run as it was after step `SAVED`."""
    workdir = folder / name
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(folder / "whole", workdir)
    shutil.rmtree(workdir / "checkpoints" / str(LAST))
    (workdir / "DONE").unlink()
    return workdir


def cases(folder: Path, seed: int, flips: int) -> Iterator[Case]:
    """Yields every damage of every file of the newest checkpoint, `flips` of "flip"."""
    checkpoint = folder / "whole" / "checkpoints" / str(SAVED)
    numbers = random.Random(seed)
    for file in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        for damage in ("flip",) * (flips - 1) + DAMAGES:
            yield Case(str(file.relative_to(checkpoint)), damage, numbers.randrange(2**32))


def apply(case: Case, checkpoint: Path) -> None:
    """Damages a checkpoint as a case says."""
    file = checkpoint / case.file
    content = bytearray(file.read_bytes())
    if case.damage == "delete":
        file.unlink()
        return
    if case.damage == "flip" and content:
        numbers = random.Random(case.seed)
        content[numbers.randrange(len(content))] ^= 1 << numbers.randrange(8)
    kept = {"flip": len(content), "cut": len(content) // 2, "empty": 0}[case.damage]
    file.write_bytes(content[:kept])


def end(workdir: Path) -> tuple[Any, ...]:
    """Returns everything that has to be the same at the end of two runs."""
    lineage = read_lineage(str(workdir / "checkpoints" / str(LAST)))
    totals = (lineage.step, lineage.position, lineage.tokens, lineage.flops, lineage.growth)
    lines = json.dumps(tiny.curve(read_metrics(str(workdir))))
    return lines, totals, lineage.digests, lineage.optimizer_digests, (workdir / "DONE").exists()


def outcome(case: Case, folder: Path, config: RunConfig) -> str:
    """Runs a case and returns its outcome: one of `GOOD`, or a description of the fault."""
    workdir = before_the_end(folder)
    apply(case, workdir / "checkpoints" / str(SAVED))
    try:
        train(config, str(workdir))
    except (UserError, StorageError) as error:
        return "refused" if "\n" not in str(error) else f"refused in several lines: {error}"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {str(error)[:300]}"
    if end(workdir) != end(folder / "whole"):
        return "another end, without a word"
    moved = list((workdir / "checkpoints").glob(f"{SAVED}.damaged-*"))
    return "moved aside" if moved else "unaffected"


def main() -> int:
    """Runs the sweep; returns 1 if there are faults."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="empty directory for the runs")
    parser.add_argument("--seed", type=int, default=0, help="of the flipped bits")
    parser.add_argument("--flips", type=int, default=2, help="flipped bits for each file")
    parser.add_argument("--cases", type=int, default=0, help="random cases to run; 0: all")
    parser.add_argument("--json", action="store_true", help="print the tally as JSON")
    arguments = parser.parse_args()
    config = undisturbed(arguments.folder)
    chosen = list(cases(arguments.folder, arguments.seed, arguments.flips))
    if arguments.cases:
        chosen = random.Random(arguments.seed).sample(chosen, arguments.cases)
    began = time.monotonic()
    tally: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    faults = []
    for number, case in enumerate(chosen):
        result = outcome(case, arguments.folder, config)
        tally[kind(case.file)][result if result in GOOD else "fault"] += 1
        if result not in GOOD:
            faults.append([*case, result])
        print(f"{number + 1}/{len(chosen)} {case.file} {case.damage}: {result}", file=sys.stderr)
    seconds = time.monotonic() - began
    if arguments.json:
        actual = {name: dict(counts) for name, counts in tally.items()}
        print(json.dumps({"seconds": seconds, "tally": actual, "faults": faults}))
    else:
        print_table(tally)
    return 1 if faults else 0


def print_table(tally: dict[str, collections.Counter[str]]) -> None:
    """Prints the tally as a table in Markdown, one row for each kind of file."""
    columns = (*GOOD, "fault")
    print(f"| file | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    for name, counts in sorted(tally.items()):
        print(f"| `{name}` | {' | '.join(str(counts[column]) for column in columns)} |")
    total: collections.Counter[str] = sum(tally.values(), collections.Counter())
    print(f"| all | {' | '.join(str(total[column]) for column in columns)} |")


if __name__ == "__main__":
    raise SystemExit(main())
