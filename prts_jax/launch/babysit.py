"""Keeps a run's slices rented until the run is finished: observes, decides and acts.

The state is in the bucket, so that a killed `babysit` can be started again anywhere.
"""

import dataclasses
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from prts_jax.errors import StorageError, UserError
from prts_jax.launch import attempts, rent, status, workers
from prts_jax.launch.attempts import CREATE, DELETE, DONE, END, MISTAKES, WAIT, Decision, State
from prts_jax.launch.gcloud import Runner
from prts_jax.launch.record import Record
from prts_jax.launch.settings import Settings, slice_of
from prts_jax.launch.status import Status


@dataclass(frozen=True)
class Watch:
    """A run to keep alive.

    Attributes:
      job: the training, without attempt and nonce.
      source: code of the hosts; None: that of earlier attempts, or `pack`'s.
      pack: copies the working tree to the bucket and returns its URL.
      delete_when_done: delete the slices after a success or a mistake too, not only at a limit.
    """

    settings: Settings
    job: workers.Job
    source: workers.Source | None
    pack: Callable[[], str]
    limits: attempts.Limits = field(default_factory=attempts.Limits)
    extras: str = "tpu"
    delete_when_done: bool = False
    poll_seconds: float = 60.0

    @property
    def slices(self) -> str:
        """Name, zone and service of the slices."""
        backend = slice_of(self.settings).backend
        return f"{self.settings.name} in {self.settings.zone} ({backend})"


def babysit(
    watch: Watch,
    run: Runner,
    now: Callable[[], float],
    sleep: Callable[[float], None],
    say: Callable[[str], None],
) -> int:
    """Watches a run until it ends, and returns its exit code: 0, 1 after a divergence, 2 or 75.

    `now` gives seconds since 1970, `say` takes one line for each change.

    Raises:
      UserError: slices of this name exist that no `babysit` has rented, or another one has taken
        over.
      StorageError: the bucket does not answer at the start; later it is waited for.
    """
    record = Record(watch.job, run)
    sitter = _Sitter(watch, record, _begin(watch, record, run, now()), run, now, say)
    if sitter.state.outcome == DONE:
        sitter.tell(f"attempt {sitter.state.attempt} is finished already")
        if watch.delete_when_done and sitter.state.slices in ("", watch.slices):
            sitter.release()
        return 0
    trouble = ""
    while True:
        try:
            code, trouble = sitter.step(), ""
        except StorageError as error:
            if str(error) != trouble:
                sitter.tell(trouble := str(error))
            code = None
        if code is not None:
            return code
        sleep(watch.poll_seconds)


class _Sitter:
    """A watch in progress: its state, and what was last said of the slices."""

    def __init__(
        self,
        watch: Watch,
        record: Record,
        state: State,
        run: Runner,
        now: Callable[[], float],
        say: Callable[[str], None],
    ) -> None:
        self._watch, self._record, self._run, self._now, self._say = watch, record, run, now, say
        self.state, self._owner, self._before = state, state.owner, ""

    def tell(self, text: str) -> None:
        stamp = datetime.fromtimestamp(self._now(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._say(f"{stamp} {self._watch.settings.name}: {text}")

    def release(self) -> None:
        count = rent.release(self._watch.settings, self._run)
        self.tell(f"deleted all that was rented ({count})")

    def step(self) -> int | None:
        """Observes, decides and acts once; returns the exit code at the end."""
        watch, size = self._watch, slice_of(self._watch.settings)
        seen = self._look()
        result = self._record.result(self.state)
        chips = size.chips // size.hosts
        decision = attempts.decide(self.state, seen, result, watch.limits, chips, self._now())
        self._record.check(self._owner)
        self._keep(decision)
        if decision.action == CREATE:
            decision = _create(watch, self.state, self._run, self._now())
            self._keep(decision)
        end = decision.action == END
        # A limit is there to end the cost.
        stays = self.state.outcome in (DONE, *MISTAKES) and not watch.delete_when_done
        if decision.action == DELETE or (end and not stays):
            self.release()
        return decision.code if end else None

    def _look(self) -> Status:
        settings = self._watch.settings
        service, size = rent.service_of(settings)
        seen = service.describe(settings, size, self._run)
        if not self.state.attempt and seen.state not in (status.ABSENT, status.UNKNOWN):
            raise UserError(
                f"--name={settings.name}: {seen} exists, and babysit has not rented it; "
                "`prts tpu delete` it, or choose another name"
            )
        if str(seen) != self._before:
            self.tell(f"{self._before} → {seen}" if self._before else str(seen))
            self._before = str(seen)
        return seen

    def _keep(self, decision: Decision) -> None:
        self._record.write(decision.state)
        self.state = decision.state
        if decision.why:
            self.tell(decision.why)


def launch(watch: Watch, run: Runner, now: float) -> str:
    """Rents the slices of a first attempt, once, so that `babysit` can watch them afterwards.

    Returns the reason of gcloud's refusal; "" after a success.

    Raises:
      UserError: slices of this name exist.
      StorageError: gcloud does not say what exists, or the bucket does not take the state.
    """
    name = watch.settings.name
    service, size = rent.service_of(watch.settings)
    seen = service.describe(watch.settings, size, run)
    if seen.state == status.UNKNOWN:
        raise StorageError(f"gcloud does not say whether {name} exists ({seen.detail}); try again")
    if seen.state != status.ABSENT:
        raise UserError(f"--name={name}: {seen} exists; `prts tpu delete` it, or choose another")
    record = Record(watch.job, run)
    state = dataclasses.replace(_begin(watch, record, run, now), outcome="")
    first = attempts.next_attempt(state, now)
    record.write(first)
    return _create(watch, first, run, now).why


def _begin(watch: Watch, record: Record, run: Runner, now: float) -> State:
    """Returns the state to resume; an unfinished run is taken over from another `babysit`.

    A changed command or, after a mistake, a new start is a new job with the present code.
    """
    state = record.read() or State()
    code = "" if state.outcome in MISTAKES else state.source
    source = watch.source.url if watch.source else code
    changed = (state.arguments, state.source) != (watch.job.arguments, source)
    if state.outcome == DONE and not changed:
        return state
    if state.slices not in ("", watch.slices):
        raise UserError(
            f"{record.file}: is the state of {state.slices}, not of {watch.slices}; `prts tpu "
            "delete` those slices and delete this file, or give another --workdir"
        )
    if state.attempt and (changed or state.outcome):
        rent.release(watch.settings, run)  # of the job before: a new attempt has a new result
        state = dataclasses.replace(state, nonce="", outcome="", retries=0, next_create=0.0)
    if changed or not source:
        state = State(
            attempt=state.attempt,
            source=source or watch.pack(),
            arguments=watch.job.arguments,
            started=now,
        )
    state = dataclasses.replace(state, owner=secrets.token_hex(4), slices=watch.slices)
    record.write(state)
    return state


def _create(watch: Watch, state: State, run: Runner, now: float) -> Decision:
    """Rents the slices of a new attempt; what an earlier one left is deleted first."""
    source = watch.source or workers.Source(state.source, extras=watch.extras)
    slices = watch.settings.slices
    job = dataclasses.replace(
        watch.job,
        attempt=state.attempt,
        nonce=state.nonce,
        hosts=slice_of(watch.settings).hosts * slices,
        slices=slices,
    )
    rent.release(watch.settings, run)
    result = rent.rent(watch.settings, workers.startup_script(source, job), run)
    if result.code == 0:
        return Decision(WAIT, state)
    if result.refused:
        ended = dataclasses.replace(state, outcome="refused")
        return Decision(END, ended, f"gcloud refuses: {result.reason}", 2)
    return attempts.retry(state, result.reason, watch.limits, now)
