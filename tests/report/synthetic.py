"""Synthetic runs whose validation loss is a power law of their own FLOPs."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prts_jax.config import RunConfig, to_dict
from prts_jax.report.runs import Run, read_seeds

SOURCES = {"RedPajamaComedies": 0.05, "RedPajamaHistories": 0.0, "RedPajamaTragedies": -0.05}


def power_law(start: float, floor: float, half: float) -> Callable[[float], float]:
    """Returns loss(own FLOPs) = floor + (start − floor) · (1 + FLOPs / half)^−0.35."""
    return lambda flops: floor + (start - floor) * (1 + flops / half) ** -0.35


def read_runs(arguments: Sequence[str], now: float | None = None) -> list[Run]:
    """Returns the runs of a command line without seeds."""
    [runs] = read_seeds(arguments, now)
    return runs


def write_run(
    workdir: Path,
    loss: Callable[[float], float],
    steps: int = 1000,
    layers: int = 12,
    flops_per_token: float = 1e6,
    start: dict[str, float] | None = None,
    done: bool = True,
    **config: Any,
) -> Path:
    """Writes the workdir of a run of 1,000 tokens a step, evaluated every 100 steps.

    Args:
      workdir: folder to create.
      loss: of the run's own FLOPs.
      steps: how many.
      layers: of its model.
      flops_per_token: of its model.
      start: the line of the run that it grew from.
      done: whether it has finished.
      **config: "section__key" values laid over the defaults.
    """
    workdir.mkdir(parents=True)
    resolved = to_dict(RunConfig())
    resolved["model"].update(layers=layers, embed=128)
    resolved["train"]["steps"] = steps
    resolved["schedule"]["kind"] = "constant"
    for name, value in config.items():
        section, key = name.split("__")
        resolved[section][key] = value
    (workdir / "config.json").write_text(json.dumps(resolved))
    start = start or {"tokens": 0, "flops": 0.0, "flops_6nd": 0.0}
    lines = []
    for step in range(0, steps + 1, 10):
        own = step * 1000 * flops_per_token
        line: dict[str, Any] = {
            "step": step,
            "stage_step": step,
            "tokens": start["tokens"] + 1000 * step,
            "flops": start["flops"] + own,
            "flops_6nd": start["flops_6nd"] + 1.25 * own,
            "seconds": step * flops_per_token / 1e7,
        }
        if step == 0 and start["flops"]:
            line["growth"] = {"at_step": 0, "tokens": start["tokens"], "flops": start["flops"]}
        if step:
            line |= {
                "loss": loss(own) - 0.1,
                "tokens_per_second_per_device": 1e10 / flops_per_token,
            }
        if step % 100 == 0:
            line["validation_loss"] = loss(own)
            line["validation_perplexity"] = 2.718281828459045 ** loss(own)
            line |= {f"validation_loss/{name}": loss(own) + add for name, add in SOURCES.items()}
        lines.append(line)
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if done:
        (workdir / "DONE").touch()
    return workdir


def write_family(root: Path) -> tuple[Path, Path, Path]:
    """Writes a base, the run that grew from it and the baseline; returns their workdirs."""
    base = write_run(
        root / "base",
        power_law(8.0, 2.75, 1e10),
        steps=1500,
        layers=3,
        flops_per_token=4e5,
    )
    last = json.loads((base / "metrics.jsonl").read_text().splitlines()[-1])
    grown = write_run(
        root / "grown", power_law(4.6, 2.6, 4e10), steps=2000, start=last, init__grow_from=str(base)
    )
    baseline = write_run(root / "scratch", power_law(8.0, 2.6, 1e10), steps=2600)
    return base, grown, baseline


def write_staged(workdir: Path, layers: tuple[int, ...] = (3, 6, 12)) -> Path:
    """Writes a run that doubles its depth after every 500 steps, in one workdir."""
    lines: list[dict[str, Any]] = []
    for stage, depth in enumerate(layers):
        start = lines[-1] if lines else None
        part = write_run(
            workdir / str(stage), power_law(8.0 - 2 * stage, 2.7, 1e10), 500, depth, 1e5, start
        )
        stage_lines = [
            json.loads(line) for line in (part / "metrics.jsonl").read_text().splitlines()
        ]
        for line in stage_lines:
            line |= {"stage": stage, "step": 500 * stage + line["stage_step"]}
        if start is not None:
            models = [{"layers": layers[stage - 1], "embed": 128}, {"layers": depth, "embed": 128}]
            stage_lines[0]["growth"]["map"] = {"source": models[0], "target": models[1]}
            stage_lines[0]["previous_stage"] = lines.pop()
        lines += stage_lines
    stages = [{"steps": 500, "model": {"layers": depth}} for depth in layers]
    run = write_run(workdir / "run", power_law(8.0, 2.7, 1e10), 500, layers[-1])
    config = json.loads((run / "config.json").read_text()) | {"growth": {"stages": stages}}
    (run / "config.json").write_text(json.dumps(config))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run
