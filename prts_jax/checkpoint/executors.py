"""Which executor grows a checkpoint into another: by reference where that is possible."""

import dataclasses
import logging

from prts_jax.checkpoint import grow, reference
from prts_jax.checkpoint.grow import GrowthPlan, GrowthReport, Progress
from prts_jax.errors import UserError
from prts_jax.growth.map import GrowthMap

MODES = ("auto", "stream", "reference")


def grow_checkpoint(
    source: str,
    target: str,
    growth_map: GrowthMap,
    mode: str = "auto",
    *,
    progress: Progress | None = None,
) -> GrowthReport:
    """Grows a checkpoint into a new one; all executors give the same parameters.

    Args:
      source: a complete checkpoint (what `layout.resolve` returned).
      target: directory of the new checkpoint, which must not exist.
      growth_map: a valid map from the checkpoint's model.
      mode: "reference" (`reference.link`), "stream" (`grow.stream`), or "auto": by reference, and
        where that cannot be, streamed with a warning that says why.
      progress: told of every layer streamed.

    Raises:
      UserError: no such mode, the mode cannot do it, or the growth cannot be done at all.
    """
    _check_mode(mode)
    if mode == "stream":
        return grow.stream(source, target, growth_map, progress=progress)
    try:
        return reference.link(source, target, growth_map)
    except reference.CannotReferenceError as error:
        if mode == "reference":
            raise
        reason = error.reason
    logging.getLogger(__name__).warning(
        "streaming, for it cannot be grown by reference: %s", reason
    )
    streamed = grow.stream(source, target, growth_map, progress=progress)
    return dataclasses.replace(streamed, reason=reason)


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
