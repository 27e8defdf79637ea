"""Profiles of a few steps of a running job, asked for by a flag or by SIGUSR1.

The trace of `jax.profiler` goes to `WORKDIR/profile`, in the layout that xprof and TensorBoard
read. It is collected on the local disk, because the profiler itself does not write to gs://.
"""

import contextlib
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from prts_jax.config import LoggingConfig
from prts_jax.errors import first_line
from prts_jax.paths import as_path, make_folders
from prts_jax.train.metrics import TerminalLine

FOLDER = "profile"

SIGNAL = signal.SIGUSR1
"""Starts a profile of the next `logging.profile_steps` steps, in the process that receives it."""


class _Profile(NamedTuple):
    """A profile that is being collected in a temporary folder."""

    first: int
    last: int
    asked: bool
    collected: tempfile.TemporaryDirectory[str]


class Profiler:
    """Starts and ends profiles between the steps of a process."""

    def __init__(self, workdir: str) -> None:
        """Makes a profiler of the run in `workdir`; `listening` takes the signal."""
        self._folder = as_path(workdir) / FOLDER
        self._asked = False
        self._next = 0  # the step that is dispatched next, or was dispatched last
        self._profile: _Profile | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator["Profiler"]:
        """Takes the signal within the context, at whose end a profile ends too."""

        def ask(number: int, frame: Any) -> None:
            self._asked = True

        previous = signal.signal(SIGNAL, ask)
        try:
            yield self
        finally:
            signal.signal(SIGNAL, previous)
            if self._profile is not None:  # the run ends before its last step
                self._end(self._profile._replace(last=self._next))

    def between_steps(self, step: int, state: Any, config: LoggingConfig) -> None:
        """Ends or starts a profile where that is due; the loop calls it before each step.

        Args:
          step: of the lineage, the last one dispatched.
          state: its result on the devices, for which a start and an end wait.
          config: `profile_from` and `profile_steps`.
        """
        if self._profile is not None and step >= self._profile.last:
            jax.block_until_ready(state)
            self._end(self._profile)
        self._next = step + 1
        if self._profile is None and (self._asked or self._next == config.profile_from):
            jax.block_until_ready(state)
            self._start(self._next, step + config.profile_steps)

    def _start(self, first: int, last: int) -> None:
        asked, self._asked = self._asked, False
        profile = _Profile(first, last, asked, tempfile.TemporaryDirectory())
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # calls of Python slow the steps and fill the file
        try:
            jax.profiler.start_trace(profile.collected.name, profiler_options=options)
        except RuntimeError as error:  # another profile runs in this process
            _say(profile, f"no profile from step {first}: {first_line(error)}")
            profile.collected.cleanup()
        else:
            self._profile = profile

    def _end(self, profile: _Profile) -> None:
        self._profile = None
        target = self._folder / "plugins" / "profile" / f"steps_{profile.first}-{profile.last}"
        try:
            with profile.collected as collected:
                jax.profiler.stop_trace()
                make_folders(target)
                for trace in Path(collected).rglob("*.xplane.pb"):
                    file = target / f"host_{jax.process_index()}.xplane.pb"
                    file.write_bytes(trace.read_bytes())
        except Exception as error:  # a profile that fails does not end the run
            _say(profile, f"the profile from step {profile.first} is lost: {first_line(error)}")
            return
        steps = f"steps {profile.first} to {profile.last}"
        _say(profile, f"profile of {steps} in {target}; `xprof --logdir={self._folder}` shows it")


def _say(profile: _Profile, text: str) -> None:
    """Prints on the first process, or on the one that was asked by the signal."""
    TerminalLine(0, jax.process_index() > 0 and not profile.asked).say(text)
