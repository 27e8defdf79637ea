"""Progress lines of a build: files done, tokens, rates of this run and the time left."""

import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from data_pipelines.store.writer import Shard

REPORT_SECONDS = 10.0


class Progress:
    """Reports a line after the first file, the last, and every `REPORT_SECONDS` between them."""

    def __init__(
        self,
        title: str,
        sizes: Sequence[int],
        missing: Sequence[int],
        report: Callable[[str], None],
    ):
        """Reports how many files an earlier run finished.

        Args:
          title: prefix of each line.
          sizes: bytes of every file.
          missing: numbers of the files that this run reads.
          report: called with each line.
        """
        self._title, self._report = title, report
        self._files, self._done = len(sizes), len(sizes) - len(missing)
        self._to_do = sum(sizes[index] for index in missing)
        self._begin = time.monotonic()
        self._last_line = float("-inf")
        self._bytes = self._tokens = self._bad = 0
        if self._done:
            report(f"{title}: {self._done} of {self._files} files were done before")

    def add(self, shard: Shard) -> None:
        """Counts one more finished file."""
        self._done += 1
        self._bytes += shard.source_bytes
        self._tokens += shard.tokens
        self._bad += sum(len(lines) for lines in shard.bad.values())
        now = time.monotonic()
        if self._done < self._files and now - self._last_line < REPORT_SECONDS:
            return
        self._last_line = now
        seconds = max(now - self._begin, 1e-9)
        rest = self._to_do - self._bytes
        left = timedelta(seconds=round(rest * seconds / max(self._bytes, 1)))
        self._report(
            f"{self._title}: file {self._done}/{self._files}, {self._tokens:,} tokens, "
            f"{self._bytes / seconds / 1e6:.2f} MB/s read, "
            f"{self._tokens / seconds:,.0f} tokens/s, {left} left"
            + (f", {self._bad:,} bad rows left out" if self._bad else "")
        )
