"""The model of a checkpoint, restored onto a mesh for evaluation."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from prts_jax.checkpoint import layout, restore
from prts_jax.checkpoint.layout import PARAMS
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.config import ComputeConfig, MeshConfig, ModelConfig, to_dict
from prts_jax.errors import UserError
from prts_jax.formats.safetensors_files import INDEX, SINGLE
from prts_jax.growth.gates import fold_current_gates
from prts_jax.growth.notation import parse_layers
from prts_jax.mesh import abstract_params_on_any_mesh, make_mesh
from prts_jax.model.architecture import declare
from prts_jax.paths import as_path

DTYPES = ("bfloat16", "float32")
"""Dtypes of activations and matrix products."""


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint's model; float32 parameters on a mesh, as for training, gates folded in."""

    path: str
    lineage: Lineage
    params: Any = field(repr=False)
    mesh: Mesh
    compute: ComputeConfig

    @property
    def model(self) -> ModelConfig:
        """The model's shape."""
        return self.lineage.model

    @property
    def length(self) -> int:
        """Longest sequence, in tokens, see `Lineage.length`."""
        return self.lineage.length


def load(
    spec: str,
    dtype: str = "bfloat16",
    attention: str = "auto",
    layers: str = "",
    weights: str = PARAMS,
) -> LoadedModel:
    """Restores a checkpoint, or a run's workdir[@step], onto all devices.

    `layers` are those to apply in order, as `prts_jax.growth.notation` reads them: repeated, left
    out or permuted; "" applies each once. `weights` is `PARAMS`, or `EMA` for their moving average.

    Raises:
      UserError: the checkpoint is missing, damaged, without a moving average or has half-open gates
        of width, or `layers` is no list of the checkpoint's layers.
    """
    path = resolve(spec)
    lineage = layout.read_lineage(path)
    declarations = declare(lineage.model)
    device_mesh = make_mesh(MeshConfig())
    abstract = abstract_params_on_any_mesh(declarations, device_mesh)
    params = restore.restore_params(path, abstract, declarations, lineage=lineage, item=weights)
    params = fold_current_gates(params, lineage, declarations)
    if layers:
        params, lineage = _selected(params, lineage, layers)
    compute = ComputeConfig(dtype=dtype, attention=attention)
    return LoadedModel(path, lineage, params, device_mesh, compute)


def _selected(params: Any, lineage: Lineage, layers: str) -> tuple[Any, Lineage]:
    """Returns the parameters of a model of some of the layers, and a lineage with its depth."""
    model = lineage.model
    try:
        selected = np.asarray(parse_layers(layers, model.layers))
    except UserError as error:
        raise UserError(f"--layers={layers}: {error}") from error
    stacked = jax.tree.map(lambda leaf: leaf[selected], params["layers"])
    config = lineage.config | {"model": to_dict(dataclasses.replace(model, layers=len(selected)))}
    return params | {"layers": stacked}, dataclasses.replace(lineage, config=config)


def resolve(spec: str) -> str:
    """Returns the path of a checkpoint: its directory, or a run's workdir[@step].

    Raises:
      UserError: there is no complete checkpoint; names the command that imports another format.
    """
    try:
        return layout.resolve(spec)
    except UserError as error:
        if any((as_path(spec) / name).exists() for name in (SINGLE, INDEX)):
            raise UserError(
                f"{spec}: is a model of Hugging Face; import it first: prts convert --from=hf "
                f"--to=orbax --source={spec} --target=DIR"
            ) from error
        raise
