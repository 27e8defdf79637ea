"""State of the slices, in words that both services share."""

from dataclasses import dataclass

ABSENT = "ABSENT"
WAITING = "WAITING"
PROVISIONING = "PROVISIONING"
ACTIVE = "ACTIVE"
PARTIAL = "PARTIAL"
SUSPENDED = "SUSPENDED"
FAILED = "FAILED"
DELETING = "DELETING"
UNKNOWN = "UNKNOWN"

_WORST_FIRST = (UNKNOWN, DELETING, FAILED, SUSPENDED, PARTIAL, WAITING, PROVISIONING, ACTIVE)


@dataclass(frozen=True)
class Status:
    """State of all slices of a run.

    Attributes:
      state: one of the names above; UNKNOWN where gcloud did not answer.
      seen: hosts that run.
      expected: hosts asked for; 0 where that is unknown.
      detail: Google's reason, such as "quota exceeded"; "" for none.
    """

    state: str
    seen: int = 0
    expected: int = 0
    detail: str = ""

    def __str__(self) -> str:
        """Returns "ACTIVE (3 of 4 hosts): reason"."""
        hosts = f" ({self.seen} of {self.expected} hosts)" if self.expected else ""
        return f"{self.state}{hosts}{': ' if self.detail else ''}{self.detail}"


def worst(statuses: list[Status]) -> Status:
    """Returns the state of several slices: that of the slice which keeps the others waiting."""
    present = [status for status in statuses if status.state != ABSENT]
    seen = sum(status.seen for status in statuses)
    expected = sum(status.expected for status in statuses)
    detail = next((status.detail for status in present if status.detail), "")
    if not present:
        return Status(ABSENT, seen, expected)
    if len(present) < len(statuses):
        return Status(PARTIAL, seen, expected, detail or "a slice is missing")
    state = min((status.state for status in present), key=_WORST_FIRST.index)
    return Status(state, seen, expected, detail)
