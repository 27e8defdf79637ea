"""Counts of a store: tokens, documents and bytes by set, and lengths of documents."""

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data_pipelines.store.files import Files
from data_pipelines.store.index import (
    ANSWER_DTYPE,
    END_DTYPE,
    SOURCE_DTYPE,
    open_checked,
    read_index,
)
from prts_jax.paths import PathLike
from prts_jax.text_table import MISSING, align

READ_ITEMS = 1 << 24  # at once
BINS_PER_OCTAVE = 2
BINS = 32 * BINS_PER_OCTAVE


@dataclass(frozen=True)
class Packed:
    """Counts of a packed store.

    Attributes:
      length: inputs of a row.
      truncated: examples whose end was cut off.
      left_out: rows of input that were bad.
    """

    rows: int
    length: int
    examples: int
    truncated: int
    answers: int
    padding: int
    left_out: int

    def __str__(self) -> str:
        tokens = max(self.rows * (self.length + 1), 1)
        return (
            f"{self.examples:,} examples in {self.rows:,} rows of {self.length:,} + 1 tokens: "
            f"{self.answers / tokens:.1%} answers, {self.padding / tokens:.1%} padding; "
            f"{self.truncated:,} truncated, {self.left_out:,} bad rows left out"
        )


@dataclass(frozen=True)
class Statistics:
    """Counts of a store; arrays have a row for each set.

    Attributes:
      sources: names of the sets.
      tokens: int64 [sets].
      documents: int64 [sets].
      text_bytes: UTF-8 bytes of the text, int64 [sets]; None if the store does not record them.
      lengths: int64 [sets, BINS]: documents whose length in tokens lies in
        [2^(i / BINS_PER_OCTAVE), 2^((i + 1) / BINS_PER_OCTAVE)).
      rows: lines of input.
      bad: rows left out, by kind.
      packed: counts of a packed store; None for other stores.
    """

    sources: tuple[str, ...]
    tokens: np.ndarray
    documents: np.ndarray
    text_bytes: np.ndarray | None
    lengths: np.ndarray
    rows: int
    bad: Mapping[str, int]
    packed: Packed | None = None

    def as_json(self) -> dict[str, Any]:
        """Returns all counts but the histogram as plain values, by set and in total."""

        def entry(tokens: int, documents: int, text_bytes: int | None) -> dict[str, Any]:
            per_token = text_bytes / tokens if text_bytes is not None and tokens else None
            return {
                "tokens": tokens,
                "documents": documents,
                "bytes": text_bytes,
                "bytes_per_token": per_token,
            }

        tokens, documents = self.tokens.tolist(), self.documents.tolist()
        text_bytes = [None] * len(tokens) if self.text_bytes is None else self.text_bytes.tolist()
        all_bytes = None if self.text_bytes is None else int(self.text_bytes.sum())
        return {
            "sets": {
                name: entry(*row)
                for name, *row in zip(self.sources, tokens, documents, text_bytes, strict=True)
            },
            "total": entry(sum(tokens), sum(documents), all_bytes),
            "rows": self.rows,
            "bad": dict(self.bad),
            **({} if self.packed is None else {"packed": asdict(self.packed)}),
        }

    def table(self) -> str:
        """Returns the counts as lines of text."""
        counts = self.as_json()
        total = counts["total"]
        rows = [["set", "tokens", "share", "documents", "bytes", "bytes/token"]]
        for name, row in [*counts["sets"].items(), ("total", total)]:
            share = row["tokens"] / max(total["tokens"], 1)
            size = MISSING if row["bytes"] is None else f"{row['bytes']:,}"
            ratio = row["bytes_per_token"]
            per_token = MISSING if ratio is None else f"{ratio:.3f}"
            rows.append(
                [
                    name,
                    f"{row['tokens']:,}",
                    f"{share:.2%}",
                    f"{row['documents']:,}",
                    size,
                    per_token,
                ]
            )
        lines = align(rows)
        if self.packed is not None:
            lines.append(str(self.packed))
        if self.bad:
            kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.bad.items())
            lines.append(f"left out of {self.rows:,} rows: {kinds}")
        return "\n".join(lines)


def statistics(directory: PathLike) -> Statistics:
    """Counts a finished store, local or on gs://; reads no tokens.

    Raises:
      UserError: no finished store there.
    """
    index = read_index(directory)
    files = open_checked(directory, index)
    shape = (len(index["sources"]), BINS)
    lengths, documents = np.zeros(shape, np.int64), np.zeros(shape[0], np.int64)
    for shard in index["shards"]:
        count = shard["documents"]
        ends = files.read(f"{shard['name']}.ends", END_DTYPE, 0, count).astype(np.int64)
        sources = files.read(f"{shard['name']}.sources", SOURCE_DTYPE, 0, count)
        sizes = np.maximum(np.diff(ends, prepend=0), 1)
        bins = (np.log2(sizes) * BINS_PER_OCTAVE).astype(np.int64)
        np.add.at(lengths, (sources, bins), 1)
        documents += np.bincount(sources, minlength=shape[0])
    known = all(shard.get("bytes_per_source") for shard in index["shards"])
    return Statistics(
        sources=tuple(index["sources"]),
        tokens=_column_sums(index, "tokens_per_source"),
        documents=documents,
        text_bytes=_column_sums(index, "bytes_per_source") if known else None,
        lengths=lengths,
        rows=index.get("rows", 0),
        bad=index.get("bad", {}),
        packed=_packed(index, files, documents) if "packing" in index else None,
    )


def _packed(index: Mapping[str, Any], files: Files, documents: np.ndarray) -> Packed:
    """Counts a packed store, whose last source is padding."""
    length = index["packing"]["length"]
    return Packed(
        rows=index["tokens"] // (length + 1),
        length=length,
        examples=int(documents[:-1].sum()),
        truncated=index["truncated"],
        answers=sum(
            int(files.read(f"{shard['name']}.answers", ANSWER_DTYPE, start, stop).sum())
            for shard in index["shards"]
            for start in range(0, shard["tokens"], READ_ITEMS)
            for stop in [min(start + READ_ITEMS, shard["tokens"])]
        ),
        padding=int(_column_sums(index, "tokens_per_source")[-1]),
        left_out=sum(index["bad"].values()),
    )


def _column_sums(index: Mapping[str, Any], key: str) -> np.ndarray:
    rows = np.array([shard[key] for shard in index["shards"]], np.int64)
    return rows.reshape(-1, len(index["sources"])).sum(axis=0)


def draw(counts: Statistics, title: str) -> bytes:
    """Returns a histogram of the documents' lengths by set, as a PNG."""
    from matplotlib.figure import Figure

    used = np.flatnonzero(counts.lengths.sum(axis=0))
    first, last = (used[0], used[-1] + 1) if used.size else (0, 1)
    edges = 2.0 ** (np.arange(first, last + 1) / BINS_PER_OCTAVE)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, row in zip(counts.sources, counts.lengths, strict=True):
        if row.any():
            share = row[first:last] / row.sum()
            axes.stairs(share * 100, edges, label=f"{name} ({row.sum():,})", linewidth=1.5)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("tokens of a document")
    axes.set_ylabel("share of the set's documents, %")
    axes.set_ylim(bottom=0)
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, title="set (documents)")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150)
    return picture.getvalue()
