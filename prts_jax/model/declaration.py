"""What a parameter says of itself, once: everything else about it is derived from this."""

from dataclasses import dataclass

LAYERS = "layers"
"""Logical axis of stacked layers: always axis 0 of a leaf that has it."""

STREAM = "embed"
"""Logical axis of the residual stream, which every layer reads and adds to."""


@dataclass(frozen=True)
class Declaration:
    """A parameter's declaration, as the model makes it and without any array.

    Attributes:
      shape: sizes, one for each logical axis.
      dtype: name of the stored dtype ("float32").
      axes: logical axes in order, of: layers, vocab, embed, heads, kv_heads, head_dim, mlp.
      contracts: the axes summed over when the parameter is applied; their product is its fan-in.
      init: name of the initialiser (`prts_jax.model.initialise`): "linear", "embedding",
        "down_projection" or "ones".
    """

    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]
    contracts: tuple[str, ...]
    init: str

    @property
    def stacked(self) -> bool:
        """Whether axis 0 is the stack of layers."""
        return bool(self.axes) and self.axes[0] == LAYERS

    @property
    def writes_stream(self) -> bool:
        """Whether it is a layer's output projection: something else in, the stream out.

        Where all of these are zero the layer is the identity.
        """
        return (
            self.stacked
            and bool(self.contracts)
            and STREAM in self.axes
            and STREAM not in self.contracts
        )

    @property
    def fan_in(self) -> int:
        """Product of the sizes of the contracted axes (1 if there is none)."""
        product = 1
        for axis, size in zip(self.axes, self.shape, strict=True):
            if axis in self.contracts:
                product *= size
        return product
