"""The text and JSON of `prts grow`: the dry run, the report, and the result of `--verify`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prts_jax.checkpoint.commit import free_bytes
from prts_jax.errors import escaped
from prts_jax.growth.function_preservation import reasons
from prts_jax.growth.leaf_text import leaf_text
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.on_disk.grow import Execution, GrowthReport
from prts_jax.growth.on_disk.plan import GrowthPlan
from prts_jax.growth.recipe import changes
from prts_jax.model.architecture import declare
from prts_jax.text_table import format_bytes

if TYPE_CHECKING:  # computing a model takes Orbax, seconds to import; only --verify does
    from prts_jax.evaluate.agreement import Agreement


def dry_run(execution: Execution) -> str:
    """Returns the map drawn, the function and the leaves it changes, and bytes and memory."""
    work = execution.work
    source, target = escaped(work.source), escaped(work.target)
    lines = [str(work.growth_map), "", *_function(work.growth_map), "", "leaves:"]
    lines += [f"  {line}" for line in leaves(work)]
    lines.append("")
    whole = Execution(work, "stream")
    if execution.mode == "reference":
        lines.append(
            f"shares the files of {source} with {target}, in about a second at any size; "
            f"--mode=stream would read {format_bytes(whole.bytes_read)} and write "
            f"{format_bytes(whole.bytes_written)}"
        )
        if execution.bytes_written:
            size = format_bytes(execution.bytes_written)
            lines.append(f"writes {size} of {_unshared(work)}, which cannot be shared")
    else:
        if execution.reason:
            lines.append(
                f"streams, because growth by reference is not possible: {execution.reason}"
            )
        free = free_bytes(work.target)
        space = "unknown (object store)" if free is None else format_bytes(free)
        lines.append(f"reads {format_bytes(whole.bytes_read)} from {source}")
        lines.append(f"writes {format_bytes(whole.bytes_written)} to {target}; free there: {space}")
    return "\n".join([*lines, f"needs about {format_bytes(execution.memory_bytes)} of memory"])


def leaves(work: GrowthPlan) -> list[str]:
    """Returns what becomes of each leaf and of its moments."""
    return leaf_text(work.growth_map, declare(work.growth_map.target), work.policy)


def as_json(execution: Execution) -> dict[str, Any]:
    """Returns what `prts grow --dry_run --json` prints; the keys of a growth's report are in it."""
    work = execution.work
    whole = Execution(work, "stream")
    report = GrowthReport(
        mode="dry_run",
        seconds=0.0,
        bytes_read=whole.bytes_read,
        bytes_written=whole.bytes_written,
        peak_rss_bytes=0,
        layers=work.growth_map.layers,
        reason=execution.reason,
    )
    clauses = reasons(work.growth_map)
    return report.to_json() | {
        "expected_mode": execution.mode,
        "expected_memory_bytes": execution.memory_bytes,
        "bytes_free": free_bytes(work.target),
        "connection_rate": work.growth_map.connection_rate(),
        "function_preserving": not clauses,
        "not_preserving_because": clauses,
        "leaves": changes(work.growth_map, work.recipes),
        "optimizer": work.policy,
    }


def report_text(report: GrowthReport, work: GrowthPlan) -> str:
    """Returns the report in a line."""
    if report.mode == "reference":
        files = "file" if report.files_linked == 1 else "files"
        size = format_bytes(report.bytes_linked)
        text = f"{report.files_linked} {files} of {size} shared with the source"
        if report.bytes_written:
            text += f", {format_bytes(report.bytes_written)} of {_unshared(work)} written"
    else:
        text = (
            f"{format_bytes(report.bytes_written)} written, {format_bytes(report.bytes_read)} read"
        )
    memory = format_bytes(report.peak_rss_bytes)
    return f"{text} in {report.seconds:.1f} s, peak memory {memory}"


def agreement_text(agreement: "Agreement") -> str:
    """Returns the result of `--verify`."""
    rounding = "" if agreement.allowed is None else f"; rounding may be {agreement.allowed:.2g}"
    return "\n".join(
        [
            f"verified in float32 on {agreement.tokens:,} tokens, {agreement.data}:",
            f"  largest logit difference {agreement.largest_difference:.3g}, "
            f"{agreement.relative_difference:.2g} of the largest logit "
            f"({agreement.largest_logit:.3g}){rounding}",
            f"  loss {agreement.loss_before:.4f} before, {agreement.loss_after:.4f} after",
        ]
    )


def _unshared(work: GrowthPlan) -> str:
    names = {"optimizer state": work.optimizer, "the weights' moving average": work.ema}
    return " and ".join(name for name, planned in names.items() if planned)


def _function(growth_map: GrowthMap) -> Sequence[str]:
    clauses = reasons(growth_map)
    if not clauses:
        return ["function preserving: the grown model computes what its source does"]
    return ["not function preserving:", *(f"  {clause}" for clause in clauses)]
