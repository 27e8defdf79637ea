"""Rules of a build: how much bad input a store may leave out, and how its documents lie."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from data_pipelines.chat.packing import Packing
from data_pipelines.store.index import INDEX
from data_pipelines.store.writer import Shard
from data_pipelines.text.rows import DAMAGED_FILE
from prts_jax.errors import UserError


@dataclass(frozen=True)
class Rules:
    """Rules for bad rows and for the order of documents.

    Attributes:
      skip_bad: leaves bad rows out and lists them in the index; False fails at the first.
      max_bad_fraction: share that may be left out of the rows, that may be damaged of the files,
        and that damage may lose of the files' bytes; above it no store is finished.
      layout: "mixed" or "by_set".
      packing: packing of examples into rows; None for documents one after another.
      digests: input file → SHA-256 that it must have; empty if none is expected.
      extends: folder of a finished store whose shards come first; "" for none.
    """

    skip_bad: bool = False
    max_bad_fraction: float = 0.001
    layout: str = "mixed"
    packing: Packing | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    extends: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_fraction <= 1:
            raise UserError(f"--max_bad_fraction={self.max_bad_fraction}: give a share of 0 … 1")

    def check(self, shards: Sequence[Shard], directory: str) -> None:
        """Checks how much of the input was bad, of all shards that are made from it.

        Raises:
          UserError: more rows, files or bytes than the rules allow.
        """
        bad = [(shard, kind, lines[0]) for shard in shards for kind, lines in shard.bad.items()]
        rows = sum(len(lines) for shard in shards for lines in shard.bad.values())
        files = sum(any(kind in shard.bad for kind in DAMAGED_FILE) for shard in shards)
        counts = {
            "rows": (rows, sum(shard.rows for shard in shards)),
            "files": (files, len(shards)),
            "bytes": (
                sum(shard.lost_bytes for shard in shards),
                sum(shard.source_bytes for shard in shards),
            ),
        }
        allowed = self.max_bad_fraction if self.skip_bad else 0.0
        if any(lost > allowed * total for lost, total in counts.values()):
            shard, kind, line = bad[0]
            limit = f"--max_bad_fraction={allowed:g}" if self.skip_bad else "--on_error=fail allows"
            lost = ", ".join(
                f"{lost:,} of {total:,} {what}" for what, (lost, total) in counts.items() if lost
            )
            raise UserError(
                f"too much bad input: {lost}, more than {limit}; the first is "
                f"{kind} at {shard.source_file}, line {line}, all are listed in {directory} "
                f"({INDEX}, or shard-*.json before it is written); fix them, or start again with "
                "--on_error=skip and a larger fraction: finished shards are kept"
            )


STRICT = Rules()
