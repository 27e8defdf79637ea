"""The declaration of a parameter, from which sharding, growth, counts and initial values follow."""

import enum
import math
from dataclasses import dataclass

LAYERS = "layers"
"""Logical axis of stacked layers: always axis 0 of a leaf that has it."""

STREAM = "embed"
"""Logical axis of the residual stream, which every layer reads and adds to."""


class Kind(enum.StrEnum):
    """The role of a parameter in the model."""

    TABLE = "table"
    """Rows that are looked up. Tied, it is also the head and contracts its width."""
    READER = "reader"
    """A linear map that reads the stream: MLP up and gate projections, the head."""
    WRITER = "writer"
    """A layer's linear map that adds to the stream: the MLP down projection."""
    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    """Linear maps from the stream to query, key and value heads."""
    OUTPUT = "output"
    """A layer's linear map from the heads' values to the stream."""
    NORM = "norm"
    """The scale of an RMS norm, over the axis that `Declaration.normalizes` names."""


@dataclass(frozen=True)
class Declaration:
    """A parameter's declaration, made by the model without allocating an array.

    Attributes:
      shape: sizes, one for each logical axis.
      dtype: name of the stored dtype ("float32").
      axes: logical axes in order, of: layers, vocab, embed, heads, kv_heads, head_dim, mlp.
      contracts: the axes summed over when the parameter is applied; their product is its fan-in.
      init: name of the initialiser (`prts_jax.model.initialise`): "linear", "embedding",
        "down_projection" or "ones".
      kind: the role of the parameter.
      normalizes: of a norm, the axis whose mean square it divides by; "" for other kinds.
      normed: of a query or key projection, whether an RMS norm over head_dim follows it.
    """

    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]
    contracts: tuple[str, ...]
    init: str
    kind: Kind
    normalizes: str = ""
    normed: bool = False

    @property
    def stacked(self) -> bool:
        """Whether axis 0 is the stack of layers."""
        return bool(self.axes) and self.axes[0] == LAYERS

    @property
    def layers(self) -> int:
        """Layers of a stacked leaf; 1 for a leaf without layers."""
        return self.shape[0] if self.stacked else 1

    @property
    def layer_axes(self) -> tuple[str, ...]:
        """Logical axes of one layer, or of a leaf without layers."""
        return self.axes[1:] if self.stacked else self.axes

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """Shape of one layer, or of a leaf without layers."""
        return self.shape[1:] if self.stacked else self.shape

    @property
    def writes_stream(self) -> bool:
        """Whether it adds to the stream: where all of these are zero, a layer is the identity."""
        return self.kind in (Kind.WRITER, Kind.OUTPUT)

    @property
    def scales_stream(self) -> bool:
        """Whether it is a norm of the stream."""
        return self.kind is Kind.NORM and self.normalizes == STREAM

    @property
    def fan_in(self) -> int:
        """Product of the sizes of the contracted axes (1 if there is none)."""
        sizes = zip(self.axes, self.shape, strict=True)
        return math.prod(size for axis, size in sizes if axis in self.contracts)
