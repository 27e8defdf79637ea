"""Lineage: a checkpoint's record of its own past, stored beside its parameters as JSON."""

import dataclasses
import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import prts_jax
from prts_jax.checkpoint.lineage_checks import DAMAGED_VALUES, check_levels, check_values
from prts_jax.checkpoint.records import (
    FINE_TUNING,
    BranchRecord,
    ChangeRecord,
    GrowthRecord,
    SkipRecord,
)
from prts_jax.config import ModelConfig, from_dict, to_dict
from prts_jax.errors import UserError, first_line
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.matrices import COST, COUNTED, Matrices
from prts_jax.special_ids import SpecialIds

FORMAT = 1
"""Version of the layout on disk; increased when older readers would misread it."""

Digests = dict[str, tuple[str, ...]]

OMITTED_IF_EMPTY = (
    "optimizer_digests",
    "tokenizer",
    "branches",
    "skipped",
    "ema_digests",
    "recent_losses",
)
"""Keys of a lineage that older versions do not know."""


def current_versions() -> dict[str, str]:
    """Returns the versions of the packages that affect the values in a checkpoint."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy")
    return {
        "prts_jax": prts_jax.__version__,
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
    }


@dataclass(frozen=True)
class Lineage:
    """The history of a checkpoint.

    Attributes:
      step: optimizer steps, ancestors included.
      stage_step: steps since the last growth; drives schedules and gates.
      config: the resolved `RunConfig` as nested dictionaries; "model" describes this checkpoint.
      position: tokens consumed from the data order; the next batch starts there.
      tokens: tokens trained on, ancestors included.
      flops: FLOPs spent, ancestors included, by the project's own formula.
      flops_6nd: FLOPs spent, ancestors included, by 6·N·D.
      store: fingerprint of the token store.
      growth: growths, oldest first.
      digests: path → one digest per layer; one digest for a leaf that is not stacked.
      optimizer_digests: the same for the optimizer's state; {} without one, and in checkpoints of
        older versions.
      changes: config changes on resume, oldest first.
      versions: package name → version, of the process that wrote the checkpoint.
      stage: index of the stage in its run's `growth.stages`; 0 in a run of one stage.
      imported: of an imported model {"format", "path", "dtype", "length"} and what an export
        repeats: "special_ids" of its config.json and "generation_config"; else {}.
      evaluation: the last evaluation: {"step", "validation_loss", …}, the keys of metrics.jsonl.
      matrices: digest → matrices of the dense maps in `growth`; stored in separate files.
      teacher: {"path", "digest"} of the checkpoint that the stage is distilled from; else {}.
      special_ids: of the imported model, or of the token store of the first run; None in
        checkpoints of older versions (`prts_jax.checkpoint.tokenizer.special_ids_of` reads both).
      tokenizer: name → SHA-256 of the tokenizer's files in the checkpoint; {} without any, and in
        checkpoints of older versions.
      branches: branches, oldest first.
      skipped: skipped steps, oldest first.
      ema_digests: as `digests`, of the moving average of the parameters; {} without one.
      recent_losses: last losses of the stage, oldest first, against which a spike is judged
        (`prts_jax.train.spikes`); () in a run that looks for none.
    """

    step: int
    stage_step: int
    config: dict[str, Any]
    position: int
    tokens: int
    flops: float
    flops_6nd: float
    store: str
    growth: tuple[GrowthRecord, ...]
    digests: Digests
    changes: tuple[ChangeRecord, ...] = ()
    versions: dict[str, str] = field(default_factory=current_versions)
    stage: int = 0
    imported: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    matrices: Mapping[str, Matrices] = field(default_factory=dict)
    teacher: dict[str, Any] = field(default_factory=dict)
    special_ids: SpecialIds | None = None
    optimizer_digests: Digests = field(default_factory=dict)
    tokenizer: dict[str, str] = field(default_factory=dict)
    branches: tuple[BranchRecord, ...] = ()
    skipped: tuple[SkipRecord, ...] = ()
    ema_digests: Digests = field(default_factory=dict)
    recent_losses: tuple[float, ...] = ()

    def digests_of(self, item: str) -> Digests:
        """Returns the digests of a checkpoint's item: "params", "optimizer" or "ema"."""
        return {
            "params": self.digests,
            "optimizer": self.optimizer_digests,
            "ema": self.ema_digests,
        }[item]

    @property
    def model(self) -> ModelConfig:
        """The model of this checkpoint."""
        return from_dict(ModelConfig, self.config["model"], "model")

    @property
    def length(self) -> int:
        """Longest sequence, in tokens: of the imported model, or of the training rows after it."""
        return max(int(self.imported.get("length") or 0), self.row_length or 0) or int(
            self.config["data"]["length"]
        )

    @property
    def row_length(self) -> int | None:
        """Tokens of a training row; None for an imported model that was not trained here."""
        trained_here = self.tokens > 0 or not self.imported
        return int(self.config["data"]["length"]) if trained_here else None

    def grown(
        self,
        growth_map: GrowthMap,
        digests: Digests,
        learning: Mapping[str, Any] | None = None,
        optimizer_digests: Mapping[str, tuple[str, ...]] | None = None,
        optimizer: str = "reset",
        ema_digests: Digests | None = None,
    ) -> "Lineage":
        """Returns the lineage after growth, at the start of a new stage.

        Tokens and FLOPs include the learning of the map, once in a lineage, also if an earlier run
        learned it. The position includes it only if this run did.

        Args:
          growth_map: the map applied.
          digests: of the grown parameters.
          learning: of a map that this run learned: {"tokens", "flops", "flops_6nd"} and other
            values to record.
          optimizer_digests: of the grown optimizer state; None without one.
          optimizer: what became of the optimizer state, for the record.
          ema_digests: of the grown moving average; None without one.
        """
        spent = dict(learning or self._cost_of_reuse(growth_map.matrices))
        record = GrowthRecord(
            self.step,
            self.tokens,
            self.flops,
            growth_map,
            spent or None,
            self.evaluation or None,
            optimizer,
        )
        dense = growth_map.matrices
        learned = {dense.digest: dense} if dense is not None and dense.digest else {}
        return dataclasses.replace(
            self,
            stage_step=0,
            evaluation={},
            position=self.position + (learning or {}).get("tokens", 0),
            tokens=self.tokens + spent.get("tokens", 0),
            flops=self.flops + spent.get("flops", 0),
            flops_6nd=self.flops_6nd + spent.get("flops_6nd", 0),
            config={**self.config, "model": to_dict(growth_map.target)},
            growth=(*self.growth, record),
            digests=digests,
            optimizer_digests=dict(optimizer_digests or {}),
            ema_digests=dict(ema_digests or {}),
            versions=current_versions(),
            matrices={**self.matrices, **learned},
            teacher={},
        )

    def growth_of_stage(self) -> GrowthRecord | None:
        """Returns the growth with which the present stage began; None if it began without one."""
        began = self.step - self.stage_step
        grown = [record for record in self.growth if record.at_step == began]
        return grown[-1] if grown else None

    def _cost_of_reuse(self, matrices: Matrices | None) -> Mapping[str, Any]:
        """Returns the cost of matrices that were learned earlier, to book in this lineage."""
        if matrices is None or not matrices.learning:
            return {}
        booked = any(
            record.map.matrices == matrices and "tokens" in (record.learning or {})
            for record in self.growth
        )
        return {"run": matrices.learning["run"], COST: COUNTED} if booked else matrices.learning

    def branched(self, trunk: str) -> "Lineage":
        """Returns the lineage at the start of a branch from the checkpoint `trunk`."""
        record = BranchRecord(
            self.step, self.stage_step, self.stage, self.tokens, self.flops, trunk
        )
        return dataclasses.replace(self, stage=0, branches=(*self.branches, record))

    def change_record(self, key: str, from_: Any, to: Any) -> ChangeRecord:
        """Returns the record of a change of `key` at this step."""
        return ChangeRecord(self.step, key, from_, to)

    def fine_tuned(self) -> "Lineage":
        """Returns the lineage at the start of fine-tuning on instructions, a new stage."""
        record = ChangeRecord(
            self.step, FINE_TUNING, False, True, self.tokens, self.flops, self.evaluation
        )
        return dataclasses.replace(
            self, stage_step=0, evaluation={}, changes=(*self.changes, record)
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the lineage as a JSON object, with its format version."""
        values = to_dict(dataclasses.replace(self, matrices={}))
        del values["matrices"]
        for key in OMITTED_IF_EMPTY:
            if not values[key]:
                del values[key]
        return {"format": FORMAT, **values}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str = "lineage") -> "Lineage":
        """Reads the result of `to_json`, without matrices; ignores unknown keys.

        Args:
          values: the parsed JSON.
          where: source file, for messages.

        Raises:
          UserError: the format differs, keys are missing, or values have another type.
        """
        version = values.get("format") if isinstance(values, Mapping) else None
        if version != FORMAT:
            raise UserError(
                f"{where}: has format {version!r} and this version reads {FORMAT}; use the version "
                "of prts_jax that wrote it"
            )
        known = {field.name for field in dataclasses.fields(cls)} - {"matrices"}
        kept = {key: value for key, value in values.items() if key in known}
        try:
            check_levels(kept)
            lineage = from_dict(cls, kept, root="lineage")
            check_values(lineage)
        except KeyError as error:
            raise UserError(f"{where}: it holds no {error}; the checkpoint is damaged") from error
        except (UserError, *DAMAGED_VALUES) as error:
            raise UserError(f"{where}: {first_line(error)}; the checkpoint is damaged") from error
        return lineage
