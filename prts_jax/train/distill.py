"""Distillation: adds the cross-entropy to a frozen teacher's distribution to the loss."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from prts_jax.checkpoint import layout, restore
from prts_jax.checkpoint.layout import is_complete
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.config import ModelConfig, RunConfig
from prts_jax.errors import UserError
from prts_jax.growth.gates import fold_current_gates
from prts_jax.mesh import abstract_params_on_any_mesh
from prts_jax.model.architecture import declare
from prts_jax.model.counts import count_parameters, forward_flops_per_token

SOURCE = "source"
"""Value of `distillation.teacher` for the checkpoint that the stage was grown from."""


@dataclass(frozen=True)
class Teacher:
    """A frozen model on the mesh.

    Attributes:
      path: path of its checkpoint.
      model: its config.
      params: its parameters, sharded by their own declarations where the mesh allows it.
      flops_per_token: FLOPs of its forward pass per token.
      six_n_d_per_token: its contribution to the 6·N·D estimate per token, 2·N.
    """

    path: str
    model: ModelConfig
    params: Any
    flops_per_token: int
    six_n_d_per_token: int


def soft_losses(student_BxSxV: jax.Array, teacher_BxSxV: jax.Array) -> jax.Array:
    """Returns the cross-entropy −Σ p_teacher log p_student of each position, in nats.

    It differs from the KL divergence by the teacher's entropy, a constant, so both have the
    gradient p_student − p_teacher. No gradient flows to the teacher. Sources: the `distill` option
    of tongxuluo/prts; Hinton et al., arXiv 1503.02531, at temperature 1.

    Args:
      student_BxSxV: logits, float32.
      teacher_BxSxV: logits over the same vocabulary, float32.

    Returns:
      [B, S] float32.
    """
    p_BxSxV = jax.lax.stop_gradient(jax.nn.softmax(teacher_BxSxV, axis=-1))
    return -jnp.sum(p_BxSxV * jax.nn.log_softmax(student_BxSxV, axis=-1), axis=-1)


def choose_teacher(config: RunConfig, source: str = "") -> dict[str, Any]:
    """Returns the teacher of a new stage, as recorded in its lineage.

    Args:
      config: config of the stage.
      source: path of the checkpoint that the stage was grown from; "" without growth.

    Returns:
      {"path", "digest"}, or {} without a teacher. The digest covers the digests of all parameters.

    Raises:
      UserError: the checkpoint does not exist, or the teacher is "source" and nothing was grown.
    """
    name = config.distillation.teacher
    if not name:
        return {}
    if name == SOURCE and not source:
        raise UserError(
            "config.distillation.teacher: 'source' is the checkpoint that is grown, and nothing "
            "is; name a checkpoint, or set config.init.grow_from"
        )
    path = layout.resolve(source if name == SOURCE else name)
    return {"path": path, "digest": _digest(path)}


def find_teacher(config: RunConfig, lineage: Lineage) -> dict[str, Any]:
    """Returns the teacher of a resumed stage, which may have moved but must not have changed.

    Args:
      config: config of the stage; `init.grow_from` is the new path of a moved source.
      lineage: lineage of the resumed checkpoint.

    Returns:
      The teacher as in `choose_teacher`; a new one if --allow_change permits another teacher.

    Raises:
      UserError: the teacher's checkpoint is missing or holds other parameters.
    """
    name, chosen = config.distillation.teacher, lineage.teacher
    before = lineage.config.get("distillation", {}).get("teacher", "")
    if not name or not chosen or name != before:
        return choose_teacher(config, config.init.grow_from)
    path = chosen["path"]
    if not is_complete(path):
        path = layout.resolve((name != SOURCE and name) or config.init.grow_from or path)
    if _digest(path) != chosen["digest"]:
        raise UserError(
            f"config.distillation.teacher: {path} is not what the run began with "
            f"({chosen['path']}); put that back"
        )
    return {**chosen, "path": path}


def load_teacher(
    chosen: dict[str, Any], student: ModelConfig, mesh: Mesh, length: int
) -> Teacher | None:
    """Loads the teacher onto the mesh; returns None without one.

    Args:
      chosen: the `teacher` of the lineage.
      student: the model that is trained.
      mesh: mesh of the run.
      length: sequence length in tokens, for the FLOPs of attention.

    Raises:
      UserError: the teacher has another vocabulary than the student, has half-open gates in width,
        or cannot be read.
    """
    if not chosen:
        return None
    lineage = layout.read_lineage(chosen["path"])
    model = lineage.model
    if model.vocab != student.vocab:
        raise UserError(
            f"config.distillation.teacher: {chosen['path']} has a vocabulary of {model.vocab} and "
            f"the model one of {student.vocab}; choose a teacher with the same tokenizer"
        )
    declarations = declare(model)
    abstract = abstract_params_on_any_mesh(declarations, mesh)
    params = restore.restore_params(chosen["path"], abstract, declarations, lineage=lineage)
    return Teacher(
        path=chosen["path"],
        model=model,
        params=fold_current_gates(params, lineage, declarations),
        flops_per_token=forward_flops_per_token(model, declarations, length),
        six_n_d_per_token=2 * count_parameters(declarations).total,
    )


def _digest(path: str) -> str:
    digests = layout.read_lineage(path).digests
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
