"""Files of a run in the bucket: the state of its attempts and the results of their jobs."""

import dataclasses
import json
import re

from prts_jax.errors import StorageError, UserError
from prts_jax.heartbeats import FOLDER, host_table, parse
from prts_jax.launch.attempts import State
from prts_jax.launch.gcloud import Result, Runner
from prts_jax.launch.workers import Job
from prts_jax.text_table import render


class Record:
    """Reads and writes the files by gcloud."""

    def __init__(self, job: Job, run: Runner) -> None:
        self._job, self._run = job, run
        self.file = f"{job.folder}/babysit.json"

    def _cat(self, url: str) -> Result:
        return self._run(("gcloud", "storage", "cat", url))

    def read(self) -> State | None:
        """Returns the state; None where there is none.

        Raises:
          StorageError: the bucket does not answer.
          UserError: the state is of another version or damaged.
        """
        result = self._cat(self.file)
        if result.code:
            if "match" in result.stderr or result.absent:
                return None
            raise StorageError(f"{self.file}: cannot be read ({result.reason}); start again")
        try:
            values = json.loads(result.stdout)
            return State(**values | {"arguments": tuple(values["arguments"])})
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{self.file}: is damaged ({error}); delete it") from error

    def write(self, state: State) -> None:
        """Writes the state.

        Raises:
          StorageError: the bucket does not take it.
        """
        text = json.dumps(dataclasses.asdict(state))
        result = self._run(("gcloud", "storage", "cp", "--quiet", "-", self.file), text)
        if result.code:
            raise StorageError(f"{self.file}: cannot be written ({result.reason}); start again")

    def check(self, owner: str) -> None:
        """Raises UserError if another `babysit` has taken over."""
        current = self.read()
        if current and current.owner != owner:
            raise UserError(f"{self.file}: another babysit watches this run now; leave it to that")

    def result(self, state: State) -> str:
        """Returns the result that this attempt's job has written; "" while it runs.

        An exit code, with " diverged" after that of such a run.
        """
        job = dataclasses.replace(self._job, attempt=state.attempt, nonce=state.nonce)
        text = self._cat(job.result).stdout.strip() if state.attempt else ""
        return text if re.fullmatch(r"[0-9]+( diverged)?", text) else ""


def hosts(job: Job, run: Runner) -> list[str]:
    """Returns a table of the hosts' heartbeats in the bucket; [] without any."""
    workdir = job.workdir.rstrip("/")
    beats = parse(run(("gcloud", "storage", "cat", f"{workdir}/{FOLDER}/host_*.json")).stdout)
    name = workdir.rpartition("/")[2]
    return [render(host_table([(name, beat) for beat in beats]))] if beats else []


def report(job: Job, run: Runner) -> list[str]:
    """Returns lines on the attempts of a run, for `prts tpu status`.

    Raises:
      StorageError: the bucket does not answer.
      UserError: see `Record.read`.
    """
    record = Record(job, run)
    state = record.read()
    if state is None:
        return ["no attempt is recorded"]
    result = record.result(state).replace(" ", ", ")
    ended = f"ended with exit code {result}" if result else "runs, or has not started"
    lines = [f"attempt {state.attempt} {ended}; {state.retries} retries in a row"]
    lines.append(f"code: {state.source}; {state.chip_hours:.1f} chip-hours seen by babysit")
    return lines + ([f"babysit ended: {state.outcome}"] if state.outcome else [])
