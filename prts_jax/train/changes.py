"""Changes of a resumed run's config, compared with its checkpoint's key by key."""

import difflib
from collections.abc import Collection

from prts_jax import tree
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.checkpoint.records import ChangeRecord
from prts_jax.config import RunConfig, to_dict
from prts_jax.errors import UserError
from prts_jax.train.data_position import data_config

FREE_TO_CHANGE = (
    "mesh.",
    "logging.",
    "evaluation.",
    "checkpoint.",
    "train.steps",
    "train.max_skipped",
    # Later stages may change; the current stage is compared key by key.
    "growth.stages",
    "compute.remat",
    "compute.loss_chunks",
    "compute.tpu_flags",
    "compute.attention",
    "compute.splash_blocks",
    "compute.compilation_cache",
    "compute.scan",
    # Stores may move; their content is compared by fingerprint.
    "data.train",
    "data.validation",
    # Read only at the start of a run.
    "init.grow_from",
    "init.start_from",
    "init.branch_from",
    "init.growth.matrices",
)
"""Prefixes of the keys that may change on resume without --allow_change."""

BRANCH_CHANGES = (
    "schedule.kind",
    "schedule.decay",
    "schedule.decay_start",
    "schedule.decay_end",
    "schedule.final",
)
"""Keys in which a branch may differ from its trunk."""


def config_changes(
    lineage: Lineage, config: RunConfig, fingerprint: str, allow_change: Collection[str]
) -> tuple[ChangeRecord, ...]:
    """Compares the config of a run with its checkpoint's.

    Returns:
      The allowed changes, for the lineage.

    Raises:
      UserError: a key or the store changed and is not in `allow_change`.
    """
    before = tree.flatten({**lineage.config, "data": data_config(lineage)})
    after = tree.flatten(to_dict(config))
    pairs = {
        path.replace("/", "."): (before.get(path, value), value) for path, value in after.items()
    }
    pairs["data.store"] = (lineage.store, fingerprint)
    changes = []
    for key, (old, new) in pairs.items():
        if old == new or key.startswith(FREE_TO_CHANGE):
            continue
        if key not in allow_change:
            raise UserError(
                f"config.{key}: was {old!r} in the checkpoint at step {lineage.step} and is now "
                f"{new!r}; set it back, or pass --allow_change={key}"
            )
        changes.append(lineage.change_record(key, old, new))
    return tuple(changes)


def check_names(allow_change: Collection[str], config: RunConfig) -> None:
    """Checks that every key of --allow_change exists.

    Raises:
      UserError: names the nearest key that does.
    """
    known = [path.replace("/", ".") for path in tree.flatten(to_dict(config))] + ["data.store"]
    for key in allow_change:
        if key not in known:
            same_end = [name for name in known if name.endswith(f".{key}")]
            close = same_end or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else "--print_config shows them all"
            raise UserError(f"--allow_change={key}: no such key; {hint}")
