"""A growth map: what growth does, as data that can be printed, checked, hashed and stored."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prts_jax.config import ModelConfig, check_model, from_dict, model_differences, to_dict
from prts_jax.declaration import STREAM
from prts_jax.errors import UserError, first_line
from prts_jax.growth import function_preservation
from prts_jax.growth.matrices import Matrices
from prts_jax.growth.widening import NEW, Widening, runs

GATED = ("layers", "embed", "mlp", "heads")
"""The axes whose new positions can have gates; new key heads are read by new query heads only."""


@dataclass(frozen=True)
class GrowthMap:
    """The source of each layer and of each widened axis of a target model.

    Executors (`on_mesh`, `prts_jax.growth.on_disk.stream`) look at nothing but the attributes below
    `options`, and share the arithmetic (`prts_jax.growth.leaf`), so they agree bit for bit.
    Leaves without a layer axis and without an axis that widens are copied.

    Attributes:
      operator: name of the operator ("stack").
      options: what the operator was given ({"factor": 4}); for people and records only.
      source: the model that is grown.
      target: the grown model.
      layers: for each target layer, the index (zero-based) of the source layer it copies, or
        `NEW` (-1) for a fresh one.
      zeroed: the target layers, in rising order, whose output projections (leaves of which
        `Declaration.writes_stream` is true) are zero, so that the layer passes on what it is given.
      widths: logical axis → how it widens; axes that stay are not in it.
      new: what new positions hold ("zero" or "random", see `prts_jax.growth.leaf.grow_layers`).
      norm_scale: factor of the source's norm scales.
      pair_noise: standard deviation, relative to a fresh parameter's, of noise that is added to
        one copy of a contracted position and taken from the next.
      noise: α of `W ← (1-α) W + α ε`, on all copied leaves but norms; zero outputs stay zero.
      seed: of everything random.
      matrices: of a dense map (`prts_jax.growth.dense`): leaves with layers and axes that widen are
        mixed by them. `layers` then names the strongest source layer of each, and `widths` the
        split that the matrices started from.
      gates: logical axis → (begin, end), steps since growth between which the gates of its new
        positions open (`prts_jax.growth.gates`); axes without are open at once.
    """

    operator: str
    options: Mapping[str, Any]
    source: ModelConfig
    target: ModelConfig
    layers: tuple[int, ...]
    zeroed: tuple[int, ...] = ()
    widths: Mapping[str, Widening] = dataclasses.field(default_factory=dict)
    new: str = "zero"
    norm_scale: float = 1.0
    pair_noise: float = 0.0
    noise: float = 0.0
    seed: int = 0
    matrices: Matrices | None = None
    gates: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def validate(self) -> None:
        """Checks that the map can be executed.

        Raises:
          UserError: fewer layers than the source, a list of another length than the target has
            layers, an index beyond the source, an axis that does not widen as its sizes say, or
            models that differ in more than their depth and the axes that widen.
        """
        check_model(self.source, "growth.source")
        check_model(self.target, "growth.target")
        _check_widths(self)
        _check_gates(self)
        for layer, index in enumerate(self.layers):
            if index != NEW and not 0 <= index < self.source.layers:
                raise UserError(
                    f"growth: target layer {layer} copies source layer {index}, but the source has "
                    f"{self.source.layers} layers (0 to {self.source.layers - 1}); correct the list"
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
                f"to {len(self.layers) - 1}; correct the list"
            )

    def function_preserving(self) -> bool:
        """Returns whether the target computes what the source computes, at the moment of growth.

        `prts_jax.growth.function_preservation.reasons` says why it does not.
        """
        return not function_preservation.reasons(self)

    def adding_layers(self) -> tuple[int, ...]:
        """Returns `layers` without those that add nothing to the stream at the moment of growth."""
        zeroed = set(self.zeroed)
        kept = tuple(layer for at, layer in enumerate(self.layers) if at not in zeroed)
        return tuple(layer for layer in kept if layer != NEW or "layers" not in self.gates)

    def adds_random(self) -> bool:
        """Returns whether random entries add to what was there, at the moment of growth."""
        # New key heads are read by new query heads only, and need no gates of their own.
        gated = {*self.gates, *(["kv_heads"] if "heads" in self.gates else [])}
        return self.new == "random" and any(
            widening.has_new and axis not in gated for axis, widening in self.widths.items()
        )

    def connection_rate(self) -> float:
        """Returns the share of adjacent target layers that were adjacent in the source.

        Of the L-1 pairs of neighbours, those whose source layers are (a, a+1): Du et al.,
        arXiv 2405.15319, App. H.2. A target of one layer has no pair and rate 1.
        """
        pairs = list(zip(self.layers, self.layers[1:], strict=False))
        return sum(b == a + 1 and a != NEW for a, b in pairs) / len(pairs) if pairs else 1.0

    def new_layers(self) -> tuple[int, ...]:
        """Returns the target layers that are new: fresh, with zero outputs, or further copies.

        The first copy of a layer is the layer itself.
        """
        new, kept = [], set()
        for at, layer in enumerate(self.layers):
            if layer == NEW or at in self.zeroed or layer in kept:
                new.append(at)
            else:
                kept.add(layer)
        return tuple(new)

    def to_json(self) -> dict[str, Any]:
        """Returns the map as JSON would hold it, without defaults: digests of older maps stay."""
        bare = to_dict(
            GrowthMap(self.operator, self.options, self.source, self.target, self.layers)
        )
        required = {"operator", "options", "source", "target", "layers"}
        return {
            name: value
            for name, value in to_dict(self).items()
            if name in required or value != bare.get(name)
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "GrowthMap":
        """Reads what `to_json` returned, and validates it; arrays of matrices are not in it.

        Raises:
          UserError: a map that this version cannot read, or that cannot be executed.
        """
        try:
            growth_map = from_dict(cls, values, root="map")
        except (AttributeError, KeyError, TypeError, ValueError, UserError) as error:
            raise UserError(
                f"growth map: cannot be read ({first_line(error)}); was it written by another "
                "version?"
            ) from error
        growth_map.validate()
        return growth_map

    def digest(self) -> str:
        """Returns a hash of everything in the map (SHA-256 of its canonical JSON)."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def summary(self) -> str:
        """Returns the operator, the list of layers and what is kept, and a line a wider axis."""
        pairs = max(len(self.layers) - 1, 1)
        head = (
            f"{self.operator}: {self.source.layers} → {self.target.layers} layers "
            f"({format_ranges(self.layers)}), "
            f"connection rate {round(self.connection_rate() * pairs)}/{pairs}"
        )
        if self.zeroed:
            head += f", outputs of {len(self.zeroed)} layers zero"
        if self.noise:
            head += f", {self.noise:.0%} noise"
        if self.matrices is not None:
            head += ", strongest of mixed layers" if self.matrices.digest else ", before learning"
        head += ", function preserving" if self.function_preserving() else ""
        widths = [
            f"{axis} {getattr(self.source, axis)} → {getattr(self.target, axis)} ({widening})"
            for axis, widening in self.widths.items()
        ]
        gates = [
            f"gates of new {axis} open over steps {begin} to {end} after growth"
            for axis, (begin, end) in self.gates.items()
        ]
        return "\n".join([head, *widths, *gates])

    def __str__(self) -> str:
        """Draws the map: a row for each source layer, a column for each target layer.

        A copy is ●, one with zero outputs ○, a fresh layer ◆ in a row of its own.
        """
        drawing = _drawing(self.layers, self.zeroed, self.source.layers)
        return "\n".join([self.summary(), *drawing])


def format_ranges(layers: tuple[int, ...]) -> str:
    """Writes an index list as zero-based half-open ranges.

    >>> format_ranges((0, 1, 2, 0, 1, 2, 2))
    '0:3,0:3,2:3'
    >>> format_ranges((0, 1, -1, -1))
    '0:2,2 new'
    """
    return ",".join(
        f"{count} new" if first == NEW else f"{first}:{first + count}"
        for first, count in runs(layers, step=1)
    )


def _check_widths(growth_map: GrowthMap) -> None:
    source, target, widths = growth_map.source, growth_map.target, growth_map.widths
    free = {"layers", *widths} | ({"norm_eps"} if STREAM in widths else set())
    for field, ours, theirs in model_differences(source, target):
        if field not in free:
            raise UserError(
                f"config.model.{field}: {ours} in the source, {theirs} in the target; "
                f"the operator {growth_map.operator!r} keeps it"
            )
    for axis, widening in widths.items():
        ours, theirs = getattr(source, axis), getattr(target, axis)
        sizes = len(widening.index), len(widening.weights)
        if sizes != (theirs, theirs) or set(widening.index) - {NEW} != set(range(ours)):
            raise UserError(
                f"growth: {axis} from {ours} to {theirs}: the map's index has {sizes[0]} positions "
                f"and {sizes[1]} weights; it must name each of the source's {ours} and no other, "
                f"and fill {theirs}"
            )
    if growth_map.new not in ("zero", "random"):
        raise UserError(f"growth: new positions hold {growth_map.new!r}; give zero or random")
    if growth_map.noise > 1:
        raise UserError(f"growth.noise: is {growth_map.noise}; a share of 0 to 1, such as 0.2")
    if not 0 <= growth_map.seed < 2**63:
        raise UserError(f"growth.seed: is {growth_map.seed}; it must be 0 to 2^63 - 1")
    for name in ("norm_scale", "pair_noise", "noise"):
        value = getattr(growth_map, name)
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"growth.{name}: is {value}; it must be a number of at least 0")


def _check_gates(growth_map: GrowthMap) -> None:
    for axis, (begin, end) in growth_map.gates.items():
        widening = growth_map.widths.get(axis)
        new = NEW in growth_map.layers if axis == "layers" else widening and widening.has_new
        if axis not in GATED or not new:
            raise UserError(
                f"growth: gates of {axis!r}; only new positions of {', '.join(GATED)} have gates"
            )
        if not 0 <= begin < end:
            raise UserError(
                f"growth: gates of {axis} open from step {begin} to {end}; give a later end"
            )
        if end >= 2**31:
            raise UserError(
                f"growth.gate_steps: gates of {axis} are open only at step {end}; give fewer steps"
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
    if NEW in layers:
        dots = "".join("◆" if layer == NEW else "·" for layer in layers)
        yield f"{'new':>{margin}} {dots}"
    ticks = "".join(f"{tick:<10}" for tick in range(0, len(layers), 10))
    yield f"{'target':>{margin}} {ticks.rstrip()}"
