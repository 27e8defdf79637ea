"""Text output of `prts inspect` for other formats and for the comparison of two models."""

from collections.abc import Mapping
from typing import Any

from prts_jax.config import to_dict
from prts_jax.errors import escaped
from prts_jax.formats import config_json, inspection
from prts_jax.formats.inspection import Differences
from prts_jax.growth.map import format_ranges
from prts_jax.text_table import format_bytes


def describe(path: str) -> dict[str, Any]:
    """Returns format, path, config (None if the file has none) and params of a foreign model."""
    kind, tensors = inspection.tensors_of(path)
    model = None
    if kind == "hf":
        values = config_json.read_config_file(path)
        model = to_dict(config_json.read_config(values, f"{path}/{config_json.CONFIG}"))
    return {
        "format": kind,
        "path": path,
        "config": None if model is None else {"model": model},
        "params": {
            name: {"shape": list(tensor.shape), "dtype": tensor.dtype, "bytes": tensor.nbytes}
            for name, tensor in tensors.items()
        },
    }


def table(shown: dict[str, Any]) -> str:
    """Returns the result of `describe` as text, one line per tensor."""
    params = shown["params"]
    total = sum(tensor["bytes"] for tensor in params.values())
    lines = [escaped(shown["path"]), f"format     {shown['format']}"]
    if shown["config"] is not None:
        model = shown["config"]["model"]
        lines.append("model      " + ", ".join(f"{key}={value}" for key, value in model.items()))
    lines.append(f"tensors    {len(params)} ({format_bytes(total)})")
    return "\n".join([*lines, *leaf_lines(params)])


def leaf_lines(params: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns a line for each leaf of name → {"shape", "dtype", "bytes"}."""
    width = max(map(len, params), default=0)
    shapes = {name: "×".join(map(str, leaf["shape"])) for name, leaf in params.items()}
    columns = max(map(len, shapes.values()), default=0)
    return [
        f"  {name:<{width}}  {shapes[name]:<{columns}}  {leaf['dtype']}  {leaf['bytes']:>14,} B"
        for name, leaf in params.items()
    ]


def differences(one: str, other: str, report: Differences) -> str:
    """Returns the differences of two models as text."""
    if report.same:
        return f"{one} and {other} are the same model: {report.compared} leaves, all values equal"
    lines = [f"A = {one}", f"B = {other}"]
    lines += [f"  {key}: {a} in A, {b} in B" for key, (a, b) in report.config.items()]
    lines += [f"  {path}: only in {'AB'[where]}" for path, where in report.only.items()]
    lines += [f"  {path}: {list(a)} in A, {list(b)} in B" for path, (a, b) in report.shapes.items()]
    for path, layers in report.values.items():
        where = f" in layers {format_ranges(layers)}" if layers else ""
        lines.append(f"  {path}: other values{where}")
    equal = report.compared - len(report.values)
    lines.append(f"{equal} of {report.compared} leaves of equal shape have equal values")
    return "\n".join(lines)
