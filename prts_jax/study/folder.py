"""Files of a study on disk."""

import dataclasses
from pathlib import Path

from prts_jax.study.design import Cell


@dataclasses.dataclass(frozen=True)
class Folder:
    """The files of a study.

    Attributes:
      root: the study's workdir: `study.json`, and a folder each for configs, runs and logs.
    """

    root: Path

    @property
    def compiled(self) -> Path:
        """Compiled programs, which runs of equal shapes share."""
        return self.root / "compiled"

    def create(self) -> None:
        """Creates the folders."""
        for name in ("configs", "runs", "logs", "compiled"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    def config(self, cell: Cell) -> Path:
        """Config of a run, as `prts train --config=FILE` reads it."""
        return self.root / "configs" / f"{cell.name}.json"

    def run(self, cell: Cell) -> Path:
        """Workdir of a run."""
        return self.root / "runs" / cell.name

    def log(self, cell: Cell) -> Path:
        """Output of a run's command."""
        return self.root / "logs" / f"{cell.name}.txt"
