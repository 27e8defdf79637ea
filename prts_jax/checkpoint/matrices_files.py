"""The files of a checkpoint for the matrices of learned growth."""

from prts_jax.checkpoint.damage import DamagedError, reading
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.errors import UserError
from prts_jax.growth.matrices import Matrices
from prts_jax.paths import as_path

MATRICES = "matrices"
"""Item of a checkpoint that holds them."""


def matrices_file(path: str, digest: str) -> str:
    """Returns the file of a checkpoint for the matrices with this digest."""
    return f"{path}/{MATRICES}/{digest}.npz"


def read_matrices(file: str, digest: str = "") -> Matrices:
    """Reads the matrices of a learned map.

    Args:
      file: in a checkpoint, or a copy.
      digest: expected digest; "" accepts any.

    Raises:
      UserError: the file is missing or damaged, or has another digest.
    """
    checkpoint = str(as_path(file).parent.parent)
    try:
        with reading(checkpoint, MATRICES, file):
            data = as_path(file).read_bytes()
        matrices = Matrices.from_bytes(data, file)
    except UserError as error:
        message = f"{error}; matrices of learned growth belong there"
        raise DamagedError(checkpoint, MATRICES, message) from error
    if digest and matrices.digest != digest:
        raise DamagedError(
            checkpoint,
            MATRICES,
            f"{file}: is not what was saved (digests differ); it is damaged, use another "
            "checkpoint",
        )
    return matrices


def write_matrices(path: str, lineage: Lineage) -> None:
    """Writes the matrices of a lineage into an unfinished checkpoint."""
    for digest, matrices in lineage.matrices.items():
        file = as_path(matrices_file(path, digest))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(matrices.to_bytes())
