"""The ways a run can fail that are the user's to mend; each message says what was wrong and what to do.

Each carries the exit code that the command line ends with: 2 for input that could be refused before any work,
1 for a run that had begun.
"""

from __future__ import annotations


class RunError(ValueError):
    """The run folder can't be used as asked: it exists, is missing, is in use, or was begun with other settings."""

    exit_code = 2


class CheckpointError(RunError):
    """A checkpoint is missing, truncated, corrupt, or does not fit the model."""


class DivergedError(RuntimeError):
    """The loss or a weight is no longer a finite number."""

    exit_code = 1
