"""The position in the training data from which a run continues after a checkpoint."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from data_pipelines.batches.loader import TrainBatches
from data_pipelines.batches.mixture import train_batches
from data_pipelines.batches.order import ReadOrder
from data_pipelines.store.index import SEPARATOR
from data_pipelines.store.several import short_fingerprint
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.checkpoint.records import ChangeRecord
from prts_jax.config import DataConfig, RunConfig
from prts_jax.errors import UserError

DATA_ORDER = ("length", "seed", "shuffle", "overlap", "mixture", "block", "pieces", "strata")
"""Keys of `config.data` that determine the tokens at a position."""


def data_position(
    lineage: Lineage, config: RunConfig, batches: TrainBatches, allow_change: Collection[str]
) -> tuple[int, str, tuple[ChangeRecord, ...]]:
    """Returns the data position from which a run continues after a checkpoint.

    Reading continues at the next token if the order is the checkpoint's, or if only the length
    differs and the data are shuffled in blocks whose pieces are the same number of tokens at both
    lengths. Any other change of the order (length, seed, shuffle, mixture …) starts a new epoch.
    Another store needs `--allow_change=data.store` and is read from its start.

    Returns:
      (position in tokens, message for the user, changes for the lineage).

    Raises:
      UserError: another store without --allow_change=data.store.
    """
    fingerprint = batches.store.fingerprint
    if not lineage.store:
        return 0, "data start at the beginning", ()  # an imported model has no data position
    if lineage.store != fingerprint:
        if "data.store" not in allow_change:
            mixture = lineage.config["data"].get("mixture", "")
            # A mixture without some sets changes the fingerprint of the store.
            key = "train" if mixture == config.data.mixture else "mixture"
            raise UserError(
                f"config.data.{key}: {getattr(config.data, key)!r} is not what the checkpoint was "
                f"trained on (fingerprint {short_fingerprint(fingerprint)}, not "
                f"{short_fingerprint(lineage.store)}); set it back, or pass "
                "--allow_change=data.store to start from its beginning"
            )
        change = lineage.change_record("data.store", lineage.store, fingerprint)
        return 0, "data start at the beginning of another store", (change,)
    after = dataclasses.asdict(config.data)
    before = {**dataclasses.asdict(DataConfig()), **data_config(lineage)}
    # A mixture without shares only selects sets, and the equal fingerprint covers that.
    entries = before["mixture"].split(SEPARATOR)
    mixture = SEPARATOR.join(entry if "=" in entry else "" for entry in entries)
    order = ReadOrder.of(before, mixture=mixture)
    same_pieces = order.piece == batches.order.piece
    changed = [
        key
        for key in DATA_ORDER
        if before[key] != after[key] and not (key == "pieces" and same_pieces)
    ]
    changes = tuple(
        lineage.change_record(f"data.{key}", before[key], after[key]) for key in changed
    )
    same_order = same_pieces and batches.keeps_position(lineage.position)
    if not changed or (changed == ["length"] and same_order):
        return lineage.position, f"data go on at token {lineage.position:,}", changes
    old = train_batches(batches.store, order)
    epochs = -(-lineage.position // (old.windows_per_epoch * old.order.length))
    note = f"data.{changed[0]} changed, so data start epoch {epochs + 1} in a new order"
    return epochs * batches.windows_per_epoch * batches.order.length, note, changes


def data_config(lineage: Lineage) -> dict[str, Any]:
    """Returns `config.data` of a checkpoint, with the order of blocks that its version had."""
    return with_old_order(lineage.config["data"])


def with_old_order(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `config.data`; older versions read a block's windows in a row, or without strata."""
    return {"pieces": 1, "strata": 1, **data} if data.get("block") else dict(data)
