"""Lineage: a checkpoint's record of its own past, stored beside its parameters as JSON."""

import dataclasses
import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import prts_jax
from prts_jax.config import ModelConfig, check_model, from_dict, to_dict
from prts_jax.errors import UserError
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.matrices import Matrices

FORMAT = 1
"""Version of the layout on disk; raised when an older reader would misunderstand it."""

Digests = dict[str, tuple[str, ...]]

TUNING = "data.instructions"
"""The config's key that turns pretraining into fine-tuning on instructions."""


def current_versions() -> dict[str, str]:
    """Returns the versions of the packages that decide the numbers in a checkpoint."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy")
    return {
        "prts_jax": prts_jax.__version__,
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
    }


@dataclass(frozen=True)
class GrowthRecord:
    """One growth of the past.

    Attributes:
      at_step: step of the lineage at which the model grew.
      tokens: trained on until then.
      flops: spent until then.
      map: the map that was applied; the arrays of its matrices are in `Lineage.matrices`.
      learning: {"tokens", "flops", "flops_6nd", …} of learning this map, spent after `tokens` and
        `flops`; None for a map that was not learned.
      evaluation: the last one before it, as in `Lineage.evaluation`; None if there was none.
    """

    at_step: int
    tokens: int
    flops: float
    map: GrowthMap
    learning: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None


@dataclass(frozen=True)
class ChangeRecord:
    """A config key that changed on resume; or the beginning of fine-tuning (key `TUNING`).

    Attributes:
      step: step of the lineage at which it changed.
      key: dotted name of the key.
      from_: its value before.
      to: its value after.
      tokens: trained on before fine-tuning; None for any other change.
      flops: spent before fine-tuning; None for any other change.
      evaluation: the last one before fine-tuning; None for any other change.
    """

    step: int
    key: str
    from_: Any
    to: Any
    tokens: int | None = None
    flops: float | None = None
    evaluation: dict[str, Any] | None = None

    @property
    def begins_tuning(self) -> bool:
        """Whether fine-tuning begins here; a resume may have changed the same key."""
        return self.key == TUNING and self.tokens is not None


@dataclass(frozen=True)
class Lineage:
    """The past of a checkpoint.

    Attributes:
      step: optimizer steps along the lineage; a grown run continues the count of its source.
      stage_step: steps since the last growth; drives schedules and gates.
      config: the resolved `RunConfig` as nested dictionaries; its "model" is this checkpoint's.
      position: tokens of the data order consumed; the next batch starts there.
      tokens: tokens trained on, ancestors included.
      flops: FLOPs spent by the project's own count, ancestors included.
      flops_6nd: the same by 6·N·D.
      store: fingerprint of the token store.
      growth: growths, oldest first.
      digests: path → one digest a layer, or a single one where the leaf is not stacked.
      changes: changes made on resume, oldest first.
      versions: names and versions of the packages that wrote it.
      stage: index of the stage in its run's `growth.stages`; 0 in a run of one stage.
      imported: of a model that began elsewhere: {"format", "path", "dtype", "length"}.
      evaluation: the last one: {"step", "validation_loss", …}, the keys of metrics.jsonl.
      matrices: digest → the matrices of dense maps among `growth`; kept in files of their own.
      teacher: the checkpoint that the stage is distilled from: {"path", "digest"}; {}: none.
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

    @property
    def model(self) -> ModelConfig:
        """The model of this checkpoint."""
        return from_dict(ModelConfig, self.config["model"], "model")

    @property
    def length(self) -> int:
        """Tokens of a training sequence, of the model's import or of the config's data."""
        return int(self.imported.get("length") or self.config["data"]["length"])

    def grown(
        self, growth_map: GrowthMap, digests: Digests, learning: Mapping[str, Any] | None = None
    ) -> "Lineage":
        """Returns the lineage right after growth, where a new stage begins.

        Tokens, FLOPs and position include the learning of the map.

        Args:
          growth_map: the map that was applied.
          digests: of the grown parameters.
          learning: of a learned map: {"tokens", "flops", "flops_6nd"} and any other values to
            record.
        """
        spent = dict(learning or {})
        record = GrowthRecord(
            self.step,
            self.tokens,
            self.flops,
            growth_map,
            spent or None,
            self.evaluation or None,
        )
        dense = growth_map.matrices
        learned = {dense.digest: dense} if dense is not None and dense.digest else {}
        return dataclasses.replace(
            self,
            stage_step=0,
            evaluation={},
            position=self.position + spent.get("tokens", 0),
            tokens=self.tokens + spent.get("tokens", 0),
            flops=self.flops + spent.get("flops", 0),
            flops_6nd=self.flops_6nd + spent.get("flops_6nd", 0),
            config={**self.config, "model": to_dict(growth_map.target)},
            growth=(*self.growth, record),
            digests=digests,
            versions=current_versions(),
            matrices={**self.matrices, **learned},
            teacher={},
        )

    def change_record(self, key: str, from_: Any, to: Any) -> ChangeRecord:
        """Returns the record of a change of `key` at this step."""
        return ChangeRecord(self.step, key, from_, to)

    def tuned(self) -> "Lineage":
        """Returns the lineage where fine-tuning on instructions begins, which is a new stage."""
        record = ChangeRecord(
            self.step, TUNING, False, True, self.tokens, self.flops, self.evaluation
        )
        return dataclasses.replace(
            self, stage_step=0, evaluation={}, changes=(*self.changes, record)
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the lineage as JSON holds it, with the number of its format."""
        values = to_dict(dataclasses.replace(self, matrices={}))
        del values["matrices"]
        return {"format": FORMAT, **values}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str = "lineage") -> "Lineage":
        """Reads what `to_json` returned; matrices are not in it, and unknown keys are ignored.

        Args:
          values: the parsed JSON.
          where: file it came from, for messages.

        Raises:
          UserError: another format, missing keys, or values of another type.
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
            lineage = from_dict(cls, kept, root="lineage")
            check_model(lineage.model)
        except KeyError as error:
            raise UserError(
                f"{where}: its config holds no {error}; the checkpoint is damaged"
            ) from error
        except UserError as error:
            raise UserError(f"{where}: {error}; the checkpoint is damaged") from error
        return lineage


@dataclass(frozen=True)
class TrainingSpan:
    """Training of one model, until it grew, until fine-tuning began, or until now.

    Attributes:
      model: the model trained.
      growth: the map that produced it; None for the first span and for fine-tuning.
      learning: of learning this map, which counts to this span; {} if it was not learned.
      tuning: whether fine-tuning on instructions begins here.
      first_step: step of the lineage at which it began.
      last_step: its last step.
      tokens: trained on in this span.
      flops: spent in this span.
      share: of the FLOPs of the whole lineage; 0 where none were spent yet.
      evaluation: the last one in it, as in `Lineage.evaluation`; {} if there was none.
      changes: made on resume within it.
    """

    model: ModelConfig
    growth: GrowthMap | None
    learning: dict[str, Any]
    tuning: bool
    first_step: int
    last_step: int
    tokens: int
    flops: float
    share: float
    evaluation: dict[str, Any]
    changes: tuple[ChangeRecord, ...]


def training_spans(lineage: Lineage) -> list[TrainingSpan]:
    """Returns the spans of a checkpoint's past, oldest first; there is at least one.

    A change at the very step of a border counts to the span after it.
    """
    borders = _borders(lineage)
    ends = [*borders[1:], _Border(lineage.step, lineage.tokens, lineage.flops, lineage.evaluation)]
    model = lineage.growth[0].map.source if lineage.growth else lineage.model
    spans = []
    for begin, end in zip(borders, ends, strict=True):
        growth = begin.growth.map if begin.growth else None
        model = growth.target if growth else model
        spans.append(
            TrainingSpan(
                model=model,
                growth=growth,
                learning=(begin.growth and begin.growth.learning) or {},
                tuning=begin.tuning,
                first_step=begin.step,
                last_step=end.step,
                tokens=end.tokens - begin.tokens,
                flops=end.flops - begin.flops,
                share=(end.flops - begin.flops) / lineage.flops if lineage.flops else 0.0,
                evaluation=end.evaluation,
                changes=tuple(
                    change
                    for change in lineage.changes
                    if not change.begins_tuning
                    and begin.step <= change.step
                    and (end is ends[-1] or change.step < end.step)
                ),
            )
        )
    return spans


@dataclass(frozen=True)
class _Border:
    """The beginning of a span, and the totals of all before it."""

    step: int
    tokens: int
    flops: float
    evaluation: dict[str, Any]
    growth: GrowthRecord | None = None
    tuning: bool = False


def _borders(lineage: Lineage) -> list[_Border]:
    """Returns the beginnings of the spans: the first, each growth, fine-tuning."""
    grown = [
        _Border(record.at_step, record.tokens, record.flops, record.evaluation or {}, record)
        for record in lineage.growth
    ]
    tuned = [
        _Border(
            change.step,
            change.tokens or 0,
            change.flops or 0.0,
            change.evaluation or {},
            None,
            True,
        )
        for change in lineage.changes
        if change.begins_tuning
    ]
    # The sort is stable: at the same step growth comes before fine-tuning.
    return [_Border(0, 0, 0.0, {}), *sorted((*grown, *tuned), key=lambda border: border.step)]
