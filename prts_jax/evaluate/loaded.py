"""A checkpoint's model on a mesh, ready to be evaluated."""

from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import Mesh

from prts_jax import tree
from prts_jax.checkpoint import store as checkpoint_store
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.config import ComputeConfig, MeshConfig, ModelConfig
from prts_jax.errors import UserError
from prts_jax.formats.safetensors_files import INDEX, SINGLE
from prts_jax.growth.gates import fold_current_gates
from prts_jax.mesh import make_mesh, param_shardings
from prts_jax.model.architecture import declare
from prts_jax.paths import as_path

ALL_DEVICES = MeshConfig()


@dataclass(frozen=True)
class LoadedModel:
    """A model whose parameters are on a mesh.

    Attributes:
      path: of the checkpoint.
      lineage: of the checkpoint.
      params: nested dictionary of float32 arrays, sharded as for training; gates are folded in.
      mesh: where they are.
      compute: how the model is computed.
    """

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
        """Tokens of the rows that it was trained on, by us or by those it was imported from."""
        return int(self.lineage.imported.get("length") or self.lineage.config["data"]["length"])


def load(
    spec: str, dtype: str = "bfloat16", mesh: MeshConfig = ALL_DEVICES, attention: str = "auto"
) -> LoadedModel:
    """Restores a checkpoint onto all devices.

    Args:
      spec: a checkpoint's directory, or a run's workdir[@step].
      dtype: of activations and matrix products.
      mesh: how the devices are arranged.
      attention: implementation, see `ComputeConfig`.

    Raises:
      UserError: no such checkpoint, a damaged one, one with half-open gates of width, or a mesh
        that does not fit the devices.
    """
    path = _resolve(spec)
    lineage = checkpoint_store.read_lineage(path)
    declarations = declare(lineage.model)
    made = make_mesh(mesh)
    shardings = param_shardings(made, declarations)
    abstract = tree.unflatten(
        {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[name])
            for name, leaf in declarations.items()
        }
    )
    params = checkpoint_store.restore_params(path, abstract, declarations)
    params = fold_current_gates(params, lineage, declarations)
    compute = ComputeConfig(dtype=dtype, attention=attention)
    return LoadedModel(path, lineage, params, made, compute)


def _resolve(spec: str) -> str:
    try:
        return checkpoint_store.resolve(spec)
    except UserError as error:
        if any((as_path(spec) / name).exists() for name in (SINGLE, INDEX)):
            raise UserError(
                f"{spec}: is a model of Hugging Face; import it first: prts convert --from=hf "
                f"--to=orbax --source={spec} --target=DIR"
            ) from error
        raise
