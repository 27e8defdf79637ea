"""`prts aot`: compiles a config for TPUs that need not be there: memory, time, collectives."""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from prts_jax.cli import config_flags, run
from prts_jax.cli.arguments import OneLineParser
from prts_jax.config import RunConfig, stage_configs
from prts_jax.errors import UserError
from prts_jax.text_table import MISSING, Table, render

GIB = 2**30

LEFT_OUT = (
    "The time leaves out Pallas kernels (attention) and communication that computation does not "
    "hide. It compares settings on one generation of TPUs; it does not promise an MFU."
)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of all flags except the config flags."""
    flags = OneLineParser(
        prog="prts aot",
        description=(
            "Compile the train step of a config with the TPU compiler, without a TPU and without "
            "allocating a parameter: memory by kind, estimated time, collectives. With stages or "
            "--source_config, compile the growth as well. A compilation takes one to three minutes."
        ),
        epilog=config_flags.HELP,
    )
    add = flags.add_argument
    add("--topology", default="", metavar="NAME", help="slice in chips: v5e:4x4, v5p:4x4x4, …")
    add("--slices", type=int, default=1, metavar="N", help="slices of this shape (default: 1)")
    add("--source_config", default="", metavar="FILE[:ARG]", help="config of the model that grows")
    add("--evaluation", action="store_true", help="compile the step of a validation as well")
    add(
        "--search",
        action="store_true",
        help="try rows per device × rematerialisation × tensor parallelism; print the best",
    )
    add("--json", action="store_true", help="print one JSON object")
    return flags


def main(argv: Sequence[str]) -> int:
    """Runs `prts aot`; see `prts aot --help`."""
    config_arguments, others = config_flags.split(argv)
    options = parser().parse_args(others)
    config = config_flags.load(config_arguments)
    if not options.topology:
        raise UserError("--topology: is missing; give the slice in chips, for example v5e:4x4")
    os.environ["JAX_PLATFORMS"] = "cpu"  # a TPU of this machine is not touched
    from prts_jax.aot.topology import open_topology

    topology = open_topology(options.topology, options.slices)
    import jax

    # A program that is read from a cache has no dump; JAX cannot read those of another machine.
    jax.config.update("jax_enable_compilation_cache", False)
    stages = stage_configs(config)
    config = stages[-1]
    if options.search:
        return _search(config, topology, options.json)
    source = _source_model(stages, options.source_config)
    results = dict(_compile(config, source, topology, options.evaluation))
    if options.json:
        print(json.dumps(_as_json(config, results, topology), indent=2))
    else:
        print("\n\n".join(_text(name, results[name], config, topology) for name in results))
        print(f"\n{LEFT_OUT}")
    return 0


def _source_model(stages: Sequence[RunConfig], source_config: str) -> Any:
    if source_config:
        return config_flags.load_file(source_config).model
    return stages[-2].model if len(stages) > 1 else None


def _compile(config: RunConfig, source: Any, topology: Any, evaluation: bool) -> Any:
    from prts_jax.aot.run import compile_evaluation_step, compile_growth_step, compile_train_step

    work = [("train", lambda: compile_train_step(config, topology))]
    if evaluation:
        work.append(("evaluation", lambda: compile_evaluation_step(config, topology)))
    if source is not None and source != config.model:
        work.append(("growth", lambda: compile_growth_step(config, source, topology)))
    for number, (name, compile_step) in enumerate(work, 1):
        print(f"aot: compiling {name} ({number} of {len(work)}) …", file=sys.stderr, flush=True)
        yield name, compile_step()


def _search(config: RunConfig, topology: Any, as_json: bool) -> int:
    from prts_jax.aot.run import REMATS, candidates, mfu_bound, search
    from prts_jax.mesh import mesh_sizes

    tensors = [size for size in (1, 2, 4, 8) if config.model.kv_heads % size == 0]
    tried = candidates(config, (1, 2, 4, 8, 16), REMATS, tensors)
    began = time.monotonic()

    def say(line: str) -> None:
        done = int(line.partition("/")[0])
        left = (time.monotonic() - began) / done * (len(tried) - done)
        print(f"aot: {line}; about {left / 60:.0f} min left", file=sys.stderr, flush=True)

    rows: list[dict[str, Any]] = [
        {
            "rows_per_device": candidate.rows,
            "remat": candidate.remat,
            "mesh": mesh_sizes(candidate.mesh),
            "hbm_bytes_per_device": result.hbm_bytes["total"],
            "estimated_seconds": result.estimated_seconds,
            "mfu_bound": mfu_bound(changed, result, topology),
        }
        for candidate, changed, result in search(config, topology, tried, say)
        if result.fits
    ]
    rows.sort(key=lambda row: row["mfu_bound"] or 0.0, reverse=True)
    if as_json:
        print(json.dumps({"best": rows}, indent=2))
        return 0
    cells = [
        [
            f"{row['rows_per_device']} × {config.data.length}",
            row["remat"],
            " ".join(f"{axis}={size}" for axis, size in row["mesh"].items()),
            f"{row['hbm_bytes_per_device'] / GIB:.2f}",
            _seconds(row["estimated_seconds"]),
            _percent(row["mfu_bound"]),
        ]
        for row in rows[:10]
    ]
    header = ("rows", "remat", "mesh", "GiB a device", "seconds", "MFU bound")
    print(render(Table(f"best settings on {topology.name}", header, cells, 3)))
    return 0


def _as_json(config: RunConfig, results: Any, topology: Any) -> dict[str, Any]:
    objects = {name: _object(result, topology) for name, result in results.items()}
    from prts_jax.aot.run import mfu_bound

    head = {"topology": topology.name, "slices": topology.slices, "chips": topology.chips}
    train = objects.pop("train")
    return head | train | {"mfu_bound": mfu_bound(config, results["train"], topology)} | objects


def _object(result: Any, topology: Any) -> dict[str, Any]:
    return {
        "fits": result.fits,
        "reason": result.reason,
        "hbm_bytes_per_device": result.hbm_bytes["total"],
        "hbm_available": topology.hbm_bytes_per_device,
        "hbm_bytes": dict(result.hbm_bytes),
        "estimated_seconds": result.estimated_seconds,
        "seconds": dict(result.seconds),
        "dearest": [
            {"seconds": seconds, "executions": times, "operation": name}
            for seconds, times, name in result.dearest
        ],
        "collectives": _bytes_by_kind(result),
        "collectives_by_axis": [dataclasses.asdict(each) for each in result.collectives],
        "kernels": dict(result.kernels),
        "compile_seconds": result.compile_seconds,
    }


def _bytes_by_kind(result: Any) -> dict[str, int]:
    kinds: dict[str, int] = {}
    for each in result.collectives:
        kinds[each.kind] = kinds.get(each.kind, 0) + each.bytes
    return kinds


def _text(name: str, result: Any, config: RunConfig, topology: Any) -> str:
    from prts_jax.aot.run import mfu_bound

    memory = [[kind, f"{size / GIB:.2f}"] for kind, size in result.hbm_bytes.items()]
    memory.append(["of", f"{topology.hbm_bytes_per_device / GIB:.2f}"])
    title = f"{name} step on {topology.slices} × {topology.name}: "
    title += ": ".join(filter(None, ("fits" if result.fits else "does not fit", result.reason)))
    parts = [render(Table(title, ("memory of a device", "GiB"), memory))]
    if result.reason:
        return parts[0]
    times = [["total", _seconds(result.estimated_seconds)]]
    if name == "train":
        times = [[part, _seconds(value)] for part, value in result.seconds.items()] + times
        times.append(["MFU bound", _percent(mfu_bound(config, result, topology))])
    parts.append(render(Table("estimated time", ("phase", "seconds"), times)))
    dearest = [[what, str(count), f"{value * 1e3:.1f}"] for value, count, what in result.dearest]
    parts.append(render(Table("dearest operations", ("operation", "times", "ms"), dearest)))
    moved = [
        [each.kind, each.axes, str(each.count), f"{each.bytes / 1e9:.2f}", _overlap(each)]
        for each in result.collectives
    ]
    header = ("collective", "axes", "times", "GB", "overlapped")
    parts.append(
        render(Table("collectives of a device", header, moved, 2)) if moved else "no collectives"
    )
    kernels = ", ".join(f"{kernel} × {count}" for kernel, count in result.kernels.items())
    parts.append(f"Pallas kernels, not in the time: {kernels or 'none'}")
    return "\n\n".join(parts)


def _seconds(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}%"


def _overlap(each: Any) -> str:
    return _percent(each.overlapped_bytes / each.bytes if each.bytes else None)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], "aot"))
