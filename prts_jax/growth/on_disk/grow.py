"""Which executor grows a checkpoint into another: by reference where that is possible."""

import dataclasses
import logging
from typing import Any

import jax

from prts_jax import processes
from prts_jax.config import CHOICES, nearest
from prts_jax.errors import UserError
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.on_disk import reference, shared_growth, stream
from prts_jax.growth.on_disk.optimizer import OptimizerPlan, plan_optimizer
from prts_jax.growth.on_disk.stream import GrowthPlan, GrowthReport, Progress

MODES = ("auto", "stream", "reference")
OPTIMIZERS = CHOICES["init.growth.optimizer"]


def grow_checkpoint(
    source: str,
    target: str,
    growth_map: GrowthMap,
    mode: str = "auto",
    *,
    progress: Progress | None = None,
    optimizer: str = "reset",
) -> GrowthReport:
    """Grows a checkpoint into a new one; all executors give the same parameters.

    Under `jax.distributed` every process calls it: they share the work of streaming, and the first
    one grows by reference (not beside an optimizer's state, whose values are work for all).

    Args:
      source: a complete checkpoint (what `layout.resolve` returned).
      target: directory of the new checkpoint, which must not exist.
      growth_map: a valid map from the checkpoint's model.
      mode: "reference" (`reference.link`), "stream" (`stream.stream`), or "auto": by reference, and
        where that cannot be, streamed with a warning that says why.
      progress: told of every layer streamed.
      optimizer: "copy" streams the optimizer's state through the map too, whatever the mode;
        "reset" leaves it behind.

    Raises:
      UserError: no such mode, the mode cannot do it, or the growth cannot be done at all.
    """
    _check_mode(mode)
    with processes.all_processes():
        moments = optimizer_plan(source, growth_map, optimizer)

    def streamed() -> GrowthReport:
        alone = jax.process_count() == 1
        executor = stream.stream if alone else shared_growth.stream_together
        return executor(source, target, growth_map, progress=progress, optimizer=moments)

    if mode == "stream":
        return streamed()
    linked = processes.run_on_first(lambda: _link(source, target, growth_map, moments))
    if "mode" in linked:
        return GrowthReport(**linked | {"layers": tuple(linked["layers"])})
    reason = linked["reason"]
    if mode == "reference":
        raise reference.CannotReferenceError(source, reason)
    logging.getLogger(__name__).warning(
        "streaming, for it cannot be grown by reference: %s", reason
    )
    return dataclasses.replace(streamed(), reason=reason)


def optimizer_plan(source: str, growth_map: GrowthMap, optimizer: str) -> OptimizerPlan | None:
    """Returns what will become of the optimizer's state: None where it is left behind.

    Args:
      source: a complete checkpoint.
      growth_map: a valid map from the checkpoint's model.
      optimizer: "reset" or "copy".

    Raises:
      UserError: neither, or a state that is not there or cannot be grown.
    """
    if optimizer not in OPTIMIZERS:
        hint = nearest(optimizer, OPTIMIZERS)
        raise UserError(f"growth.optimizer: {optimizer!r} is unknown; {hint}")
    if optimizer == "reset":
        return None
    return plan_optimizer(source, growth_map)


def _link(
    source: str, target: str, growth_map: GrowthMap, moments: OptimizerPlan | None
) -> dict[str, Any]:
    """Returns the report of a growth by reference, or only the reason why it cannot be."""
    if moments is not None and jax.process_count() > 1:
        return {"reason": "several processes share the work on the optimizer's state"}
    try:
        return reference.link(source, target, growth_map, moments).to_json()
    except reference.CannotReferenceError as error:
        return {"reason": error.reason}


def expected_mode(work: GrowthPlan, target: str, mode: str = "auto") -> tuple[str, str]:
    """Returns "stream" or "reference", and why it is streamed where "auto" would rather not.

    Raises:
      UserError: no such mode, or by reference is asked for and cannot be.
    """
    _check_mode(mode)
    reason = "" if mode == "stream" else reference.obstacle(work, target)
    if reason and mode == "reference":
        raise reference.CannotReferenceError(work.source, reason)
    return ("stream" if reason or mode == "stream" else "reference"), reason


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise UserError(f"growth mode: {mode!r} is none of {', '.join(MODES)}; name one of them")
