"""Distillation: a frozen teacher whose distribution is a part of the loss."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from prts_jax.checkpoint import store as checkpoint_store
from prts_jax.checkpoint.layout import is_complete
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.config import ModelConfig, RunConfig
from prts_jax.errors import UserError
from prts_jax.growth.gates import fold_current_gates
from prts_jax.mesh import abstract_params
from prts_jax.model.architecture import declare
from prts_jax.model.counts import count_parameters, forward_flops_per_token

SOURCE = "source"
"""Names the checkpoint that the stage was grown from."""


@dataclass(frozen=True)
class Teacher:
    """A frozen model on the mesh.

    Attributes:
      path: of its checkpoint.
      model: its shape.
      params: sharded as its own declaration says.
      flops_per_token: of its forward pass.
      six_n_d_per_token: the share of it in 6·N·D: 2·N.
    """

    path: str
    model: ModelConfig
    params: Any
    flops_per_token: int
    six_n_d_per_token: int


def soft_losses(student_BxSxV: jax.Array, teacher_BxSxV: jax.Array) -> jax.Array:
    """Cross-entropy −Σ p_teacher log p_student of each position, in nats.

    It differs from the KL divergence by the teacher's entropy, and so has its gradient:
    p_student − p_teacher. No gradient reaches the teacher. Source: the `distill` option of
    tongxuluo/prts; Hinton et al., arXiv 1503.02531, at temperature 1.

    Args:
      student_BxSxV: logits, float32.
      teacher_BxSxV: logits over the same vocabulary, float32.

    Returns:
      [B, S] float32.
    """
    p_BxSxV = jax.lax.stop_gradient(jax.nn.softmax(teacher_BxSxV, axis=-1))
    return -jnp.sum(p_BxSxV * jax.nn.log_softmax(student_BxSxV, axis=-1), axis=-1)


def choose_teacher(config: RunConfig, source: str = "") -> dict[str, Any]:
    """Decides which checkpoint teaches a stage that begins, for its lineage to remember.

    Args:
      config: of the stage.
      source: the checkpoint it was grown from; "" if it was not.

    Returns:
      {"path", "digest"}, or {} without a teacher. The digest is of the digests of all parameters.

    Raises:
      UserError: there is no such checkpoint, or no source.
    """
    name = config.distillation.teacher
    if not name:
        return {}
    if name == SOURCE and not source:
        raise UserError(
            "config.distillation.teacher: 'source' is the checkpoint that is grown, and nothing "
            "is; name a checkpoint, or set config.init.grow_from"
        )
    path = checkpoint_store.resolve(source if name == SOURCE else name)
    return {"path": path, "digest": _digest(path)}


def find_teacher(config: RunConfig, lineage: Lineage) -> dict[str, Any]:
    """Finds the teacher of a stage that resumes: the same values, wherever they lie now.

    Args:
      config: of the stage; says where a source that has moved lies (`init.grow_from`).
      lineage: of the checkpoint that is resumed.

    Returns:
      As `choose_teacher`; another choice where the config's teacher was changed by leave.

    Raises:
      UserError: the teacher is gone, or another checkpoint lies there.
    """
    name, chosen = config.distillation.teacher, lineage.teacher
    before = lineage.config.get("distillation", {}).get("teacher", "")
    if not name or not chosen or name != before:
        return choose_teacher(config, config.init.grow_from)
    path = chosen["path"]
    if not is_complete(path):
        path = checkpoint_store.resolve((name != SOURCE and name) or config.init.grow_from or path)
    if _digest(path) != chosen["digest"]:
        raise UserError(
            f"config.distillation.teacher: {path} is not what the run began with "
            f"({chosen['path']}); put that back"
        )
    return {**chosen, "path": path}


def load_teacher(
    chosen: dict[str, Any], student: ModelConfig, mesh: Mesh, length: int
) -> Teacher | None:
    """Reads the teacher onto the mesh; None without one.

    Args:
      chosen: the lineage's `teacher`.
      student: the model that learns from it.
      mesh: of the run.
      length: tokens of a sequence, for the FLOPs of attention.

    Raises:
      UserError: it has another vocabulary than the student, half-open gates of width, or cannot
        be read.
    """
    if not chosen:
        return None
    lineage = checkpoint_store.read_lineage(chosen["path"])
    model = lineage.model
    if model.vocab != student.vocab:
        raise UserError(
            f"config.distillation.teacher: {chosen['path']} has a vocabulary of {model.vocab} and "
            f"the model one of {student.vocab}; choose a teacher with the same tokenizer"
        )
    declarations = declare(model)
    abstract = abstract_params(declarations, mesh)
    params = checkpoint_store.restore_params(chosen["path"], abstract, declarations)
    return Teacher(
        path=chosen["path"],
        model=model,
        params=fold_current_gates(params, lineage, declarations),
        flops_per_token=forward_flops_per_token(model, declarations, length),
        six_n_d_per_token=2 * count_parameters(declarations).total,
    )


def _digest(path: str) -> str:
    digests = checkpoint_store.read_lineage(path).digests
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
