"""State machine that keeps a run's slices rented until the run is finished.

`decide` is a pure function from what is known to what to do. `babysit` observes, decides and acts;
it keeps its state in the bucket, so that it can be killed and started again anywhere.
"""

import dataclasses
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from prts_jax.errors import StorageError, UserError
from prts_jax.launch import rent, status, workers
from prts_jax.launch.gcloud import Result, Runner
from prts_jax.launch.settings import Settings, slice_of
from prts_jax.launch.status import Status

WAIT, CREATE, DELETE, END = "wait", "create", "delete", "end"

LONGEST_BACKOFF_SECONDS = 1800.0
STEADY_SECONDS = 3600.0
"""Time ACTIVE after which the retries are counted from 0 again."""

PARTIAL_SECONDS = 900.0
"""Time that slices which have never been complete may stay PARTIAL."""

USER_ERROR, RESUMABLE = 2, 75


@dataclass(frozen=True)
class Limits:
    """When to give up; 0 for no limit.

    Attributes:
      retries: slices rented again in a row without an hour of activity.
      hours: since the start.
      cost: of the hosts that ran, in the currency of `price`.
      price: of a chip for an hour.
      backoff_seconds: pause before the first retry; it doubles up to half an hour.
    """

    retries: int = 10
    hours: float = 0.0
    cost: float = 0.0
    price: float = 0.0
    backoff_seconds: float = 60.0


@dataclass(frozen=True)
class State:
    """Record of a run in the bucket; times in seconds since 1970.

    Attributes:
      attempt: launches so far; the hosts of this one know its number and `nonce`.
      nonce: differs between two launches.
      owner: the process that watches; another one that starts takes over.
      source: URL of the code of all attempts.
      arguments: of `prts train`.
      retries: see `Limits`.
      started: first start of this job.
      last: last observation.
      active_since: begin of the present activity; 0.0: not active.
      created: time of the last launch.
      next_create: earliest time of the next launch.
      chip_hours: chips that ran, times hours.
      outcome: "" while it runs; `done`, `user error` or the limit that ended it.
    """

    attempt: int = 0
    nonce: str = ""
    owner: str = ""
    source: str = ""
    arguments: tuple[str, ...] = ()
    retries: int = 0
    started: float = 0.0
    last: float = 0.0
    active_since: float = 0.0
    created: float = 0.0
    next_create: float = 0.0
    chip_hours: float = 0.0
    outcome: str = ""


@dataclass(frozen=True)
class Decision:
    """The next action, the state to keep, the reason in one line, and the exit code of END."""

    action: str
    state: State
    why: str = ""
    code: int = 0


def decide(
    state: State, seen: Status, result: int | None, limits: Limits, chips_of_host: int, now: float
) -> Decision:
    """Returns the next action.

    Args:
      state: before this observation.
      seen: the slices' state.
      result: exit code of this attempt's job; None while it runs.
      limits: see `Limits`.
      chips_of_host: chips of a host, for the cost.
      now: seconds since 1970.
    """
    state = _account(state, seen, chips_of_host, now)
    if result == 0:
        done = dataclasses.replace(state, outcome="done")
        return Decision(END, done, f"attempt {state.attempt} is finished")
    if result == USER_ERROR:
        refused = dataclasses.replace(state, outcome="user error")
        why = f"attempt {state.attempt} ended with exit code 2, a mistake in what was given"
        return Decision(END, refused, f"{why}; see `prts tpu logs`", USER_ERROR)
    if limit := _limit(state, limits, now):
        stopped = dataclasses.replace(state, outcome=limit)
        return Decision(END, stopped, f"stopped at {limit}", RESUMABLE)
    if seen.state == status.ABSENT:
        if now < state.next_create:
            return Decision(WAIT, state)
        launch = dataclasses.replace(
            state, attempt=state.attempt + 1, nonce=secrets.token_hex(4), created=now
        )
        return Decision(CREATE, launch, f"renting slices, attempt {launch.attempt}")
    if result is not None:
        return retry(state, f"the job ended with exit code {result}", limits, now)
    if seen.state in (status.SUSPENDED, status.FAILED):
        return retry(state, str(seen), limits, now)
    lost = bool(state.active_since) or now - state.created > PARTIAL_SECONDS
    if seen.state == status.PARTIAL and lost:
        return retry(state, f"{seen.seen} of {seen.expected} hosts run", limits, now)
    return Decision(WAIT, state)


def retry(state: State, reason: str, limits: Limits, now: float) -> Decision:
    """Returns the deletion of what is left and a later launch, or the end."""
    if limits.retries and state.retries >= limits.retries:
        stopped = dataclasses.replace(state, outcome=f"{state.retries} retries")
        why = f"{reason}; stopped at {state.retries} retries"
        return Decision(END, stopped, why, RESUMABLE)
    pause = min(limits.backoff_seconds * 2**state.retries, LONGEST_BACKOFF_SECONDS)
    again = dataclasses.replace(
        state, retries=state.retries + 1, next_create=now + pause, active_since=0.0
    )
    why = f"{reason}; deleting the slices, renting again in {pause:.0f} s (retry {again.retries})"
    return Decision(DELETE, again, why)


def _account(state: State, seen: Status, chips_of_host: int, now: float) -> State:
    """Books the time since the last observation."""
    hours = max(0.0, now - state.last) / 3600 if state.last and state.attempt else 0.0
    active = seen.state == status.ACTIVE
    since = (state.active_since or now) if active else state.active_since
    return dataclasses.replace(
        state,
        last=now,
        chip_hours=state.chip_hours + hours * seen.seen * chips_of_host,
        active_since=since,
        retries=0 if active and now - since > STEADY_SECONDS else state.retries,
    )


def _limit(state: State, limits: Limits, now: float) -> str:
    """Returns the limit that is reached; "" for none."""
    if limits.hours and now - state.started >= limits.hours * 3600:
        return f"{limits.hours:g} hours"
    if limits.cost and state.chip_hours * limits.price >= limits.cost:
        return f"a cost of {limits.cost:g}"
    return ""


@dataclass(frozen=True)
class Watch:
    """A run to keep alive.

    Attributes:
      settings: what to rent.
      job: the training, without attempt and nonce.
      source: code of the hosts; None: that of earlier attempts, or `pack`'s.
      pack: copies the working tree to the bucket and returns its URL.
      extras: extras of the package to install, comma-separated.
      limits: when to give up.
      delete_when_done: delete the slices after a success or a user error, not only at a limit.
      poll_seconds: pause between two observations.
    """

    settings: Settings
    job: workers.Job
    source: workers.Source | None
    pack: Callable[[], str]
    limits: Limits = Limits()
    extras: str = "tpu"
    delete_when_done: bool = False
    poll_seconds: float = 60.0


def babysit(
    watch: Watch,
    run: Runner,
    now: Callable[[], float],
    sleep: Callable[[float], None],
    say: Callable[[str], None],
) -> int:
    """Watches a run until it ends, and returns its exit code: 0, 2 or 75.

    Args:
      watch: the run.
      run: runs gcloud.
      now: seconds since 1970.
      sleep: waits for seconds.
      say: takes one line for each change.

    Raises:
      UserError: slices of this name exist that no `babysit` has rented, or another one has taken
        over.
      StorageError: the bucket does not answer at the start; later it is waited for.
    """
    size = slice_of(watch.settings)
    service = rent.SERVICES[size.backend]
    store = _Store(watch.job, run)
    state = _begin(watch, store, run, now())
    if state.outcome == "done":
        say(f"attempt {state.attempt} is finished already")
        return 0
    owner, before = state.owner, ""

    def tell(text: str) -> None:
        stamp = datetime.fromtimestamp(now(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        say(f"{stamp} {watch.settings.name}: {text}")

    def tick() -> int | None:
        nonlocal state, before
        seen = service.describe(watch.settings, size, run)
        if not state.attempt and seen.state not in (status.ABSENT, status.UNKNOWN):
            raise UserError(
                f"--name={watch.settings.name}: {seen} exists, and babysit has not rented it; "
                "`prts tpu delete` it, or choose another name"
            )
        if str(seen) != before:
            tell(f"{before} → {seen}" if before else str(seen))
            before = str(seen)
        result = store.result(state) if state.attempt else None
        decision = decide(state, seen, result, watch.limits, size.chips // size.hosts, now())
        store.check(owner)
        store.write(decision.state)
        state = decision.state
        if decision.why:
            tell(decision.why)
        if decision.action == CREATE:
            decision = _create(watch, state, run, now())
            state = decision.state
            store.write(state)
            if decision.why:
                tell(decision.why)
        if decision.action == DELETE or (decision.action == END and _cleans(watch, decision)):
            tell(f"deleted all that was rented ({rent.release(watch.settings, run)})")
        return decision.code if decision.action == END else None

    trouble = ""
    while True:
        try:
            code, trouble = tick(), ""
        except StorageError as error:
            if str(error) != trouble:
                tell(trouble := str(error))
            code = None
        if code is not None:
            return code
        sleep(watch.poll_seconds)


def launch(watch: Watch, run: Runner, now: float) -> str:
    """Rents the slices of a first attempt, once, so that `babysit` can watch them afterwards.

    Returns:
      The reason of gcloud's refusal; "" after a success.

    Raises:
      UserError: slices of this name exist.
      StorageError: the bucket does not take the state.
    """
    size = slice_of(watch.settings)
    seen = rent.SERVICES[size.backend].describe(watch.settings, size, run)
    if seen.state not in (status.ABSENT, status.UNKNOWN):
        raise UserError(
            f"--name={watch.settings.name}: {seen} exists; `prts tpu delete` it, or choose another"
        )
    store = _Store(watch.job, run)
    state = _begin(watch, store, run, now)
    seen = Status(status.ABSENT)
    first = decide(dataclasses.replace(state, outcome=""), seen, None, Limits(), 0, now).state
    store.write(first)
    return _create(watch, first, run, now).why


def _begin(watch: Watch, store: "_Store", run: Runner, now: float) -> State:
    """Returns the state to go on from, and takes the run over from another `babysit`."""
    state = store.read() or State()
    source = watch.source.url if watch.source else state.source
    changed = (state.arguments, state.source) != (watch.job.arguments, source)
    if state.attempt and (changed or state.outcome not in ("", "done")):
        rent.release(watch.settings, run)  # of the job before: a new attempt has a new result
        state = dataclasses.replace(state, nonce="", outcome="", retries=0, next_create=0.0)
    if changed or not source:
        state = State(
            attempt=state.attempt,
            source=source or watch.pack(),
            arguments=watch.job.arguments,
            started=now,
        )
    state = dataclasses.replace(state, owner=secrets.token_hex(4))
    store.write(state)
    return state


def _create(watch: Watch, state: State, run: Runner, now: float) -> Decision:
    """Rents the slices of a new attempt; what an earlier one left is deleted first."""
    source = watch.source or workers.Source(state.source, extras=watch.extras)
    hosts = slice_of(watch.settings).hosts * watch.settings.slices
    job = dataclasses.replace(
        watch.job,
        attempt=state.attempt,
        nonce=state.nonce,
        hosts=hosts,
        slices=watch.settings.slices,
    )
    rent.release(watch.settings, run)
    result = rent.rent(watch.settings, workers.startup_script(source, job), run)
    if result.code == 0:
        return Decision(WAIT, state)
    if result.refused:
        ended = dataclasses.replace(state, outcome="refused")
        return Decision(END, ended, f"gcloud refuses: {result.reason}", USER_ERROR)
    return retry(state, result.reason, watch.limits, now)


def _cleans(watch: Watch, decision: Decision) -> bool:
    """Whether an end deletes the slices: always at a limit, which is there to end their cost."""
    return watch.delete_when_done or decision.state.outcome not in ("done", "user error")


def report(job: workers.Job, run: Runner) -> list[str]:
    """Returns lines on the attempts of a run, for `prts tpu status`.

    Raises:
      StorageError: the bucket does not answer.
    """
    store = _Store(job, run)
    state = store.read()
    if state is None:
        return ["no attempt is recorded"]
    result = store.result(state)
    ended = "runs, or has not started" if result is None else f"ended with exit code {result}"
    lines = [f"attempt {state.attempt} {ended}; {state.retries} retries in a row"]
    lines.append(f"code: {state.source}; {state.chip_hours:.1f} chip-hours seen by babysit")
    return lines + ([f"babysit ended: {state.outcome}"] if state.outcome else [])


class _Store:
    """Files of a run in the bucket, by gcloud."""

    def __init__(self, job: workers.Job, run: Runner) -> None:
        self._job, self._run = job, run
        self._file = f"{job.folder}/babysit.json"

    def _cat(self, url: str) -> Result:
        return self._run(("gcloud", "storage", "cat", url))

    def read(self) -> State | None:
        """Returns the state; None where there is none.

        Raises:
          StorageError: the bucket does not answer.
          UserError: the state is of another version or damaged.
        """
        result = self._cat(self._file)
        if result.code:
            if "match" in result.stderr or result.absent:
                return None
            raise StorageError(f"{self._file}: cannot be read ({result.reason}); start again")
        try:
            values = json.loads(result.stdout)
            return State(**values | {"arguments": tuple(values["arguments"])})
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{self._file}: is damaged ({error}); delete it") from error

    def write(self, state: State) -> None:
        """Writes the state.

        Raises:
          StorageError: the bucket does not take it.
        """
        text = json.dumps(dataclasses.asdict(state))
        result = self._run(("gcloud", "storage", "cp", "--quiet", "-", self._file), text)
        if result.code:
            raise StorageError(f"{self._file}: cannot be written ({result.reason}); start again")

    def check(self, owner: str) -> None:
        """Raises UserError if another `babysit` has taken over."""
        current = self.read()
        if current and current.owner != owner:
            raise UserError(f"{self._file}: another babysit watches this run now; leave it to that")

    def result(self, state: State) -> int | None:
        """Returns the exit code that this attempt's job has written; None while it runs."""
        job = dataclasses.replace(self._job, attempt=state.attempt, nonce=state.nonce)
        text = self._cat(job.result).stdout.strip()
        return int(text) if text.isdigit() else None
