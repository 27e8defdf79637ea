"""What `prts grow` says of a growth: before it (`--dry_run`), and of what was verified after it."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prts_jax.growth import explain
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.on_disk.forecast import Forecast
from prts_jax.growth.on_disk.stream import GrowthPlan, GrowthReport
from prts_jax.sizes import format_bytes, format_seconds

if TYPE_CHECKING:  # computing a model takes Orbax, seconds to import; only --verify does
    from prts_jax.evaluate.agreement import Agreement


def dry_run(growth_map: GrowthMap, work: GrowthPlan, target: str, expected: Forecast) -> str:
    """Returns the map drawn, what it changes and keeps, and what it will cost."""
    lines = [str(growth_map), "", *_function(growth_map), "", "leaves:"]
    done = explain.changes(growth_map, work.declarations)
    width = max(map(len, done))
    lines += [f"  {what:<{width}}  {', '.join(_grouped(paths))}" for what, paths in done.items()]
    lines.append("")
    if expected.mode == "reference":
        lines.append(
            f"shares the files of {work.source} with {target}; --mode=stream would read "
            f"{format_bytes(expected.bytes_read)} and write {format_bytes(expected.bytes_written)}"
        )
    else:
        if expected.reason:
            lines.append(f"streams, for it cannot be grown by reference: {expected.reason}")
        free = expected.bytes_free
        space = "unknown (object store)" if free is None else format_bytes(free)
        lines.append(f"reads {format_bytes(expected.bytes_read)} from {work.source}")
        lines.append(
            f"writes {format_bytes(expected.bytes_written)} to {target}; free there: {space}"
        )
    return "\n".join([*lines, f"takes {_cost(expected)}"])


def as_json(growth_map: GrowthMap, work: GrowthPlan, expected: Forecast) -> dict[str, Any]:
    """Returns what `prts grow --dry_run --json` prints; the keys of a growth's report are in it."""
    report = GrowthReport(
        mode="dry_run",
        seconds=0.0,
        bytes_read=expected.bytes_read,
        bytes_written=expected.bytes_written,
        peak_rss_bytes=0,
        layers=growth_map.layers,
        reason=expected.reason,
    )
    return report.to_json() | {
        "expected_mode": expected.mode,
        "expected_seconds": expected.seconds,
        "expected_memory_bytes": expected.memory_bytes,
        "write_rate": expected.write_rate,
        "bytes_free": expected.bytes_free,
        "connection_rate": growth_map.connection_rate(),
        "function_preserving": growth_map.function_preserving(),
        "not_preserving_because": explain.reasons(growth_map),
        "leaves": explain.changes(growth_map, work.declarations),
    }


def report_text(report: GrowthReport) -> str:
    """Returns what was done, in a line."""
    if report.mode == "reference":
        files = "file" if report.files_linked == 1 else "files"
        size = format_bytes(report.bytes_linked)
        done = f"{report.files_linked} {files} of {size} shared with the source"
        if report.bytes_written:
            done += f", {format_bytes(report.bytes_written)} of optimizer state written"
    else:
        done = (
            f"{format_bytes(report.bytes_written)} written, {format_bytes(report.bytes_read)} read"
        )
    memory = format_bytes(report.peak_rss_bytes)
    return f"{done} in {report.seconds:.1f} s, peak memory {memory}"


def agreement_text(found: "Agreement") -> str:
    """Returns what `--verify` found."""
    rounding = "" if found.allowed is None else f"; rounding may be {found.allowed:.2g}"
    return "\n".join(
        [
            f"verified in float32 on {found.tokens:,} tokens, {found.data}:",
            f"  largest logit difference {found.largest_difference:.3g}, "
            f"{found.relative_difference:.2g} of the largest logit ({found.largest_logit:.3g})"
            f"{rounding}",
            f"  loss {found.loss_before:.4f} before, {found.loss_after:.4f} after",
        ]
    )


def _function(growth_map: GrowthMap) -> Sequence[str]:
    reasons = explain.reasons(growth_map)
    if not reasons:
        return ["function preserving: the grown model computes what its source does"]
    return ["not function preserving:", *(f"  {reason}" for reason in reasons)]


def _grouped(paths: Sequence[str]) -> list[str]:
    """Writes paths of one folder as one: "layers/mlp/{down,up}"."""
    folders = defaultdict(list)
    for path in sorted(paths):
        folder, _, name = path.rpartition("/")
        folders[folder].append(name)
    return [
        f"{folder}/{names[0] if len(names) == 1 else '{' + ','.join(names) + '}'}"
        if folder
        else ", ".join(names)
        for folder, names in folders.items()
    ]


def _cost(expected: Forecast) -> str:
    memory = f"about {format_bytes(expected.memory_bytes)} of memory"
    if expected.mode == "reference":
        return f"about a second at any size, and {memory}"
    if expected.seconds is None or expected.write_rate is None:
        return f"an unknown time, and {memory}"
    return (
        f"{format_seconds(expected.seconds)} (at {format_bytes(expected.write_rate)}/s, "
        f"which this disk just took; computing what is not copied comes on top), and {memory}"
    )
