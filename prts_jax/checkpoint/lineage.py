"""Lineage: what a checkpoint knows of its own past, stored beside its parameters as JSON."""

import dataclasses
import importlib.metadata
import platform
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import prts_jax
import prts_jax.config
from prts_jax.config import ModelConfig
from prts_jax.errors import UserError
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.matrices import Matrices

FORMAT = 1
"""Version of the layout on disk; raised when an older reader would misunderstand it."""

Digests = dict[str, tuple[str, ...]]

TUNING = "data.instructions"
"""The config's key that turns pretraining into fine-tuning on instructions."""


@dataclass(frozen=True)
class Lineage:
    """The past of a checkpoint.

    Attributes:
      step: optimizer steps along the lineage; a grown run goes on counting from its source.
      stage_step: steps since the last growth; drives schedules and gates.
      config: the resolved `RunConfig` as nested dictionaries; its "model" is this checkpoint's.
      position: tokens of the data order consumed; the next batch starts there.
      tokens: tokens trained on, ancestors included.
      flops: FLOPs spent by the project's own count, ancestors included.
      flops_6nd: the same by 6·N·D.
      store: fingerprint of the token store.
      growth: growth maps applied, oldest first: {"at_step", "tokens", "flops", "map"}, "learning"
        of a learned one, which comes after these tokens and FLOPs, and the last "evaluation"
        before it, if there was one.
      digests: path → one digest a layer, or a single one where the leaf is not stacked.
      changes: changes made on resume: {"step", "key", "from", "to"}; and the beginning of
        fine-tuning, with key `TUNING`, "tokens", "flops" and the last "evaluation" before it.
      versions: names and versions of what wrote it.
      stage: index of the stage in its run's `growth.stages`; 0 in a run of one stage.
      imported: of a model that began elsewhere: {"format", "path", "dtype", "length"}.
      matrices: digest → the matrices of dense maps among `growth`; kept in files of their own.
      teacher: the checkpoint that the stage is distilled from: {"path", "digest"}; {}: none.
      evaluation: the last one: {"step", "validation_loss", …}, the keys of metrics.jsonl.
    """

    step: int
    stage_step: int
    config: dict[str, Any]
    position: int
    tokens: int
    flops: float
    flops_6nd: float
    store: str
    growth: tuple[dict[str, Any], ...]
    digests: Digests
    changes: tuple[dict[str, Any], ...] = ()
    versions: dict[str, str] = dataclasses.field(default_factory=lambda: current_versions())
    stage: int = 0
    imported: dict[str, Any] = dataclasses.field(default_factory=dict)
    evaluation: dict[str, Any] = dataclasses.field(default_factory=dict)
    matrices: Mapping[str, Matrices] = dataclasses.field(default_factory=dict)
    teacher: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def model(self) -> ModelConfig:
        """The model of this checkpoint."""
        return prts_jax.config.from_dict(ModelConfig, self.config["model"], "model")

    def grown(
        self, growth_map: GrowthMap, digests: Digests, learning: Mapping[str, Any] | None = None
    ) -> "Lineage":
        """Returns the lineage right after growth: a new stage begins.

        Spent and read is what was before, and what learning the map took.

        Args:
          growth_map: the map that was applied.
          digests: of the grown parameters.
          learning: of a learned map: {"tokens", "flops", "flops_6nd"} and whatever else is to be
            recorded.
        """
        spent = dict(learning or {})
        record = {
            "at_step": self.step,
            "tokens": self.tokens,
            "flops": self.flops,
            "map": growth_map.to_json(),
        }
        if spent:
            record["learning"] = spent
        if self.evaluation:
            record["evaluation"] = self.evaluation
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
            config={**self.config, "model": prts_jax.config.to_dict(growth_map.target)},
            growth=(*self.growth, record),
            digests=digests,
            versions=current_versions(),
            matrices={**self.matrices, **learned},
            teacher={},
        )

    def tuned(self) -> "Lineage":
        """Returns the lineage where fine-tuning on instructions begins: a new stage, not grown."""
        record = {
            "step": self.step,
            "key": TUNING,
            "from": False,
            "to": True,
            "tokens": self.tokens,
            "flops": self.flops,
            "evaluation": self.evaluation,
        }
        return dataclasses.replace(
            self, stage_step=0, evaluation={}, changes=(*self.changes, record)
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the lineage as JSON would hold it, with the number of its format."""
        values = dataclasses.asdict(dataclasses.replace(self, matrices={}))
        del values["matrices"]
        for name in ("growth", "changes"):
            values[name] = list(values[name])
        values["digests"] = {path: list(layers) for path, layers in self.digests.items()}
        return {"format": FORMAT, **values}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str = "lineage") -> "Lineage":
        """Reads what `to_json` returned; matrices are not in it.

        Args:
          values: the parsed JSON.
          where: file it came from, for messages.

        Raises:
          UserError: another format, keys missing, or values that are none of a lineage.
        """
        found = values.get("format") if isinstance(values, Mapping) else None
        if found != FORMAT:
            raise UserError(
                f"{where}: has format {found!r} and this version reads {FORMAT}; use the version "
                "of prts_jax that wrote it"
            )
        fields = {field.name: field.type for field in dataclasses.fields(cls)}
        del fields["matrices"]
        values = {
            "stage": 0,
            "imported": {},
            "teacher": {},
            "evaluation": {},
            **values,
        }  # keys that came later
        missing = sorted(fields.keys() - values.keys())
        if missing:
            raise UserError(f"{where}: lacks {', '.join(missing)}; the checkpoint is damaged")
        known = {name: values[name] for name in fields}
        for name, kind in fields.items():
            if not _is_stored_as(kind, known[name]):
                raise UserError(
                    f"{where}: {name} is {known[name]!r:.80}; the checkpoint is damaged"
                )
        known["growth"] = tuple(known["growth"])
        known["changes"] = tuple(known["changes"])
        known["digests"] = {path: tuple(layers) for path, layers in known["digests"].items()}
        lineage = cls(**known)
        try:
            prts_jax.config.check_model(lineage.model)
        except (KeyError, UserError) as error:
            raise UserError(
                f"{where}: holds no model ({error}); the checkpoint is damaged"
            ) from error
        return lineage


def _is_stored_as(kind: Any, value: Any) -> bool:
    """Whether JSON gave back what a field of this type was written as."""
    plain = typing.get_origin(kind) or kind
    in_json: dict[Any, Any] = {tuple: list, float: (int, float)}
    return isinstance(value, in_json.get(plain, plain))


def current_versions() -> dict[str, str]:
    """Returns the versions of what decides the numbers in a checkpoint."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy")
    return {
        "prts_jax": prts_jax.__version__,
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
    }
