"""Errors that end a command with a known exit code (see `prts_jax.cli`)."""


class UserError(Exception):
    """A mistake in what the user gave: exit code 2 and this one line, without a traceback.

    The message says what is wrong, where it stands and how to mend it, in one line.
    """


class Interrupted(Exception):
    """A run that stopped early and can be resumed (preemption, SIGTERM): exit code 75."""
