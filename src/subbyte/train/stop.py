"""When a run should pause: a time limit, Ctrl-C, or the SIGTERM that batch systems send."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any


class StopSwitch:
    """Context manager that turns SIGINT and SIGTERM into a request; a second signal acts as it always does."""

    def __init__(self, time_limit: float | None = None) -> None:
        """time_limit in seconds, counted from here."""
        self.started = time.monotonic()
        self.time_limit = time_limit
        self._signal: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSwitch:
        if threading.current_thread() is threading.main_thread():  # only there can handlers be set
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal = signal.Signals(number).name
        signal.signal(number, self._before[number])

    def reason(self) -> str | None:
        """Why the run should pause now, or None."""
        if self._signal:
            return f"stopped by {self._signal}"
        if self.time_limit is not None and time.monotonic() - self.started >= self.time_limit:
            return f"the time limit of {format_seconds(self.time_limit)} is reached"
        return None

    def requested(self) -> bool:
        """Whether the run should pause now."""
        return self.reason() is not None


def format_seconds(seconds: float) -> str:
    """A duration for people.

    >>> format_seconds(9.26), format_seconds(754), format_seconds(7500)
    ('9.3 s', '12 min 34 s', '2 h 05 min')
    """
    if seconds < 60:
        return f"{seconds:.3g} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def parse_seconds(text: str) -> float:
    """A duration such as 90, 90s, 10m, 1.5h or 1h30m, in seconds.

    >>> parse_seconds("10m"), parse_seconds("1h30m"), parse_seconds("45")
    (600.0, 5400.0, 45.0)
    """
    import re

    match = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m(?:in)?)?(?:([\d.]+)s?)?", text.strip().lower())
    try:
        seconds = sum(float(n or 0) * unit for n, unit in zip(match.groups(), (3600, 60, 1))) if match else 0.0
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise ValueError(f"'{text}' is no duration above 0; write 90s, 10m, 1.5h or 1h30m")
    return seconds
