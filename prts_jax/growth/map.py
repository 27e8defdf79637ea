"""A growth map: what growth does, as data that can be printed, checked, hashed and stored."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import prts_jax.config
from prts_jax.config import ModelConfig
from prts_jax.errors import UserError


@dataclass(frozen=True)
class GrowthMap:
    """How each layer of a target model comes from a source model.

    Executors (`on_mesh`, `prts_jax.checkpoint.grow`) do what `layers` and `zeroed` say and look at
    nothing else, so they agree bit for bit. Leaves without a layer axis are copied.

    Attributes:
      operator: name of the operator that made the map ("stack").
      options: what the operator was given ({"factor": 4}); for people and records only.
      source: the model that is grown.
      target: the grown model.
      layers: for each target layer, the index (zero-based) of the source layer it copies.
      zeroed: the target layers, in rising order, whose output projections (leaves of which
        `Declaration.writes_stream` is true) are zero, so that the layer passes on what it is given.
    """

    operator: str
    options: Mapping[str, Any]
    source: ModelConfig
    target: ModelConfig
    layers: tuple[int, ...]
    zeroed: tuple[int, ...] = ()

    def validate(self) -> None:
        """Checks that the map can be executed.

        Raises:
          UserError: fewer layers than the source, a list of another length than the target has
            layers, an index beyond the source, or models that differ in more than their depth.
        """
        prts_jax.config.check_model(self.source, "growth.source")
        prts_jax.config.check_model(self.target, "growth.target")
        _check_widths(self.source, self.target)
        for layer, index in enumerate(self.layers):
            if not 0 <= index < self.source.layers:
                raise UserError(
                    f"growth: target layer {layer} copies source layer {index}, but the source has "
                    f"{self.source.layers} layers (0 to {self.source.layers - 1}); mend the list"
                )
        if self.target.layers < self.source.layers:
            raise UserError(
                f"growth: from {self.source.layers} to {self.target.layers} layers; growth never "
                "shrinks: name at least as many target layers as the source has"
            )
        if len(self.layers) != self.target.layers:
            raise UserError(
                f"growth: the list has {len(self.layers)} layers and the target "
                f"model.layers={self.target.layers}; make them equal"
            )
        rising = all(a < b for a, b in zip(self.zeroed, self.zeroed[1:], strict=False))
        if not rising or not set(self.zeroed) <= set(range(len(self.layers))):
            raise UserError(
                f"growth: zeroed target layers {list(self.zeroed)} are no rising list of layers 0 "
                f"to {len(self.layers) - 1}; mend the list"
            )

    def function_preserving(self) -> bool:
        """Returns whether the target computes what the source computes, at the moment of growth.

        A layer with zero outputs adds nothing to the residual stream, so what counts is whether
        the other layers are the source's, each once and in order.
        """
        zeroed = set(self.zeroed)
        kept = tuple(layer for at, layer in enumerate(self.layers) if at not in zeroed)
        return kept == tuple(range(self.source.layers))

    def connection_rate(self) -> float:
        """Returns the share of adjacent target layers that were adjacent in the source.

        Of the L-1 pairs of neighbours, those whose source layers are (a, a+1): Du et al.,
        arXiv 2405.15319, App. H.2. A target of one layer has no pair and rate 1.
        """
        pairs = list(zip(self.layers, self.layers[1:], strict=False))
        return sum(b == a + 1 for a, b in pairs) / len(pairs) if pairs else 1.0

    def to_json(self) -> dict[str, Any]:
        """Returns the map as JSON would hold it; what growth leaves alone is left out."""
        values = dataclasses.asdict(self)
        values |= {"options": dict(self.options), "layers": list(self.layers)}
        del values["zeroed"]
        return values | ({"zeroed": list(self.zeroed)} if self.zeroed else {})

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "GrowthMap":
        """Reads what `to_json` returned, and validates it.

        Raises:
          UserError: a map that this version cannot read, or that cannot be executed.
        """
        try:
            growth_map = cls(
                operator=values["operator"],
                options=dict(values["options"]),
                source=prts_jax.config.from_dict(ModelConfig, values["source"], "source"),
                target=prts_jax.config.from_dict(ModelConfig, values["target"], "target"),
                layers=tuple(int(layer) for layer in values["layers"]),
                zeroed=tuple(int(layer) for layer in values.get("zeroed", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"growth map: cannot be read ({error!r}); was it written by another version?"
            ) from error
        growth_map.validate()
        return growth_map

    def digest(self) -> str:
        """Returns a hash of everything in the map (SHA-256 of its canonical JSON)."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def __str__(self) -> str:
        """Draws the map: a row for each source layer, a column for each target layer.

        A copy is ●, one with zero outputs ○.
        """
        pairs = max(len(self.layers) - 1, 1)
        head = (
            f"{self.operator}: {self.source.layers} → {self.target.layers} layers "
            f"({format_ranges(self.layers)}), "
            f"connection rate {round(self.connection_rate() * pairs)}/{pairs}"
        )
        if self.zeroed:
            head += f", outputs of {len(self.zeroed)} layers zero"
        head += ", function preserving" if self.function_preserving() else ""
        return "\n".join([head, *_drawing(self.layers, self.zeroed, self.source.layers)])


def format_ranges(layers: tuple[int, ...]) -> str:
    """Writes an index list as zero-based half-open ranges.

    >>> format_ranges((0, 1, 2, 0, 1, 2, 2))
    '0:3,0:3,2:3'
    """
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([layer, layer + 1])
    return ",".join(f"{start}:{stop}" for start, stop in runs)


def _check_widths(source: ModelConfig, target: ModelConfig) -> None:
    for field in dataclasses.fields(ModelConfig):
        ours, theirs = getattr(source, field.name), getattr(target, field.name)
        if field.name != "layers" and ours != theirs:
            raise UserError(
                f"config.model.{field.name}: {ours} in the source, {theirs} in the target; "
                "growth in depth keeps everything but the number of layers"
            )


def _drawing(layers: tuple[int, ...], zeroed: tuple[int, ...], source_layers: int) -> Iterator[str]:
    marks = ["○" if at in zeroed else "●" for at in range(len(layers))]
    margin = len(f"source {max(source_layers - 1, 0)}")
    for source in reversed(range(source_layers)):
        dots = "".join(
            mark if layer == source else "·" for mark, layer in zip(marks, layers, strict=True)
        )
        label = f"source {source}" if source == source_layers - 1 else str(source)
        yield f"{label:>{margin}} {dots}"
    ticks = "".join(f"{tick:<10}" for tick in range(0, len(layers), 10))
    yield f"{'target':>{margin}} {ticks.rstrip()}"
