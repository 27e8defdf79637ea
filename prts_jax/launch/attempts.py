"""State machine of a run's attempts: a pure function from what is known to what to do."""

import dataclasses
import secrets
from dataclasses import dataclass

from prts_jax.launch import status
from prts_jax.launch.status import Status

WAIT, CREATE, DELETE, END = "wait", "create", "delete", "end"

LONGEST_BACKOFF_SECONDS = 1800.0
STEADY_SECONDS = 3600.0
"""Time ACTIVE after which the retries are counted from 0 again."""

PARTIAL_SECONDS = 900.0
"""Time that slices which have never been complete may stay PARTIAL."""

DONE = "done"
MISTAKES = ("user error", "diverged")
"""Outcomes that the same command on the same code would have again."""

_ENDS = {
    "0": (DONE, "is finished", 0),
    "2": (
        MISTAKES[0],
        "ended with exit code 2, a mistake in what was given; see `prts tpu logs`",
        2,
    ),
    "1 diverged": (MISTAKES[1], "has diverged; `prts tpu logs` says what to look at", 1),
}
"""Result of a job that is not retried → outcome, reason, exit code of `babysit`."""

_RESUMABLE = 75


@dataclass(frozen=True)
class Limits:
    """When to give up; 0 for no limit.

    Attributes:
      retries: slices rented again in a row without an hour of activity.
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
      retries: see `Limits`.
      active_since: begin of the present activity; 0.0: not active.
      next_create: earliest time of the next launch.
      chip_hours: chips that ran, times hours.
      outcome: "" while it runs; `done`, one of `MISTAKES` or the limit that ended it.
      slices: name, zone and service of the slices; "": written by an older version.
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
    slices: str = ""


@dataclass(frozen=True)
class Decision:
    """The next action, the state to keep, the reason in one line, and the exit code of END."""

    action: str
    state: State
    why: str = ""
    code: int = 0


def decide(
    state: State, seen: Status, result: str, limits: Limits, chips_of_host: int, now: float
) -> Decision:
    """Returns the next action.

    `result` is the exit code of this attempt's job, with " diverged" after that of such a run; ""
    while it runs. `now` is in seconds since 1970.
    """
    state = _account(state, seen, chips_of_host, now)
    if result in _ENDS:
        outcome, why, code = _ENDS[result]
        return _end(state, outcome, f"attempt {state.attempt} {why}", code)
    if limit := _limit(state, limits, now):
        return _end(state, limit, f"stopped at {limit}")
    if seen.state == status.ABSENT:
        if now < state.next_create:
            return Decision(WAIT, state)
        launch = next_attempt(state, now)
        return Decision(CREATE, launch, f"renting slices, attempt {launch.attempt}")
    if result:
        return retry(state, f"the job ended with exit code {result}", limits, now)
    if seen.state in (status.SUSPENDED, status.FAILED):
        return retry(state, str(seen), limits, now)
    late = seen.state == status.PARTIAL and now - state.created > PARTIAL_SECONDS
    lost = seen.state in (status.PARTIAL, status.WAITING) and state.active_since
    if late or lost:
        return retry(state, f"{seen.seen} of {seen.expected} hosts run", limits, now)
    return Decision(WAIT, state)


def next_attempt(state: State, now: float) -> State:
    """Returns the state of a new launch."""
    return dataclasses.replace(
        state,
        attempt=state.attempt + 1,
        nonce=secrets.token_hex(4),
        last=now,
        created=now,
        active_since=0.0,
    )


def retry(state: State, reason: str, limits: Limits, now: float) -> Decision:
    """Returns the deletion of what is left and a later launch, or the end."""
    if limits.retries and state.retries >= limits.retries:
        limit = f"{state.retries} retries"
        return _end(state, limit, f"{reason}; stopped at {limit}")
    pause = min(limits.backoff_seconds * 2**state.retries, LONGEST_BACKOFF_SECONDS)
    again = dataclasses.replace(
        state, retries=state.retries + 1, next_create=now + pause, active_since=0.0
    )
    why = f"{reason}; deleting the slices, renting again in {pause:.0f} s (retry {again.retries})"
    return Decision(DELETE, again, why)


def _end(state: State, outcome: str, why: str, code: int = _RESUMABLE) -> Decision:
    return Decision(END, dataclasses.replace(state, outcome=outcome), why, code)


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
