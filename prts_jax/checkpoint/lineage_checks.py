"""Checks of a lineage's values, so that a damaged file is refused and not used."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

from prts_jax.config import DataConfig, RunConfig, check_model, from_dict
from prts_jax.errors import UserError
from prts_jax.growth.matrices import COST

if TYPE_CHECKING:
    from prts_jax.checkpoint.lineage import Lineage

MOST_LEVELS = 64
"""Most levels of nested objects and lists in a lineage; one of many growths has about ten."""

DAMAGED_VALUES = (TypeError, ValueError, ArithmeticError, AttributeError, LookupError)
"""Errors of values that have another type, or lie beyond its range."""

_EVALUATION = ("step", "validation_loss")
_LEARNING = ("steps", "tokens", "flops", "first_loss", "last_loss")


def check_levels(values: Any) -> None:
    """Raises UserError if JSON values are nested deeper than `MOST_LEVELS`."""
    level = [values]
    for _ in range(MOST_LEVELS):
        lists = [one.values() if isinstance(one, dict) else one for one in level]
        level = [inner for one in lists for inner in one if isinstance(inner, dict | list)]
        if not level:
            return
    raise UserError("it is nested too deeply")


def check_values(lineage: "Lineage") -> None:
    """Raises UserError, or one of `DAMAGED_VALUES`, where a value cannot be what its name says."""
    check_model(lineage.model)
    counts = (lineage.step, lineage.stage_step, lineage.stage, lineage.position, lineage.tokens)
    if lineage.length < 1 or min(*counts, lineage.flops, lineage.flops_6nd) < 0:
        raise UserError("its counts are negative")
    if max(counts) >= 1 << 63:
        raise UserError("its counts are beyond 64 bits")
    for name, section in get_type_hints(RunConfig).items():
        if is_dataclass(section) and not isinstance(lineage.config.get(name, {}), Mapping):
            raise UserError(f"its config.{name} is {lineage.config[name]!r:.80}, no section")
    data = lineage.config["data"]
    known = {field.name for field in fields(DataConfig)} & data.keys()
    from_dict(DataConfig, {name: data[name] for name in known}, "data")
    evaluations = [growth.evaluation for growth in lineage.growth]
    evaluations += [change.evaluation for change in lineage.changes]
    for evaluation in filter(None, [lineage.evaluation, *evaluations]):
        _check_numbers(evaluation, _EVALUATION)
    for growth in lineage.growth:
        if growth.learning and COST not in growth.learning:
            _check_numbers(growth.learning, _LEARNING)


def _check_numbers(values: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if type(values[name]) not in (int, float):
            raise UserError(f"its {name} is {values[name]!r:.80}, no number")
        float(values[name])
