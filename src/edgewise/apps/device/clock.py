"""Parse local times that people write."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import datetime, timedelta

from edgewise.core.errors import TransportError


def next_time(text: str, now_s: float) -> float:
    """Parse a local time that lies ahead: ``HH:MM`` of today or tomorrow, or a date and time.

    Returns: seconds since 1970.
    Raises:
        TransportError(E-REQUEST): for other text, and for a time that has passed.
    """
    now = datetime.fromtimestamp(now_s)
    with suppress(ValueError):
        at = datetime.strptime(text.strip(), "%H:%M")
        then = now.replace(hour=at.hour, minute=at.minute, second=0, microsecond=0)
        return time.mktime((then if then > now else then + timedelta(days=1)).timetuple())
    for form in ("%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M", "%Y-%m-%d"):
        with suppress(ValueError, OverflowError):
            if (then_s := time.mktime(datetime.strptime(text.strip(), form).timetuple())) > now_s:
                return then_s
            raise TransportError("E-REQUEST", f"{text:.40} has passed.", "name a time to come.")
    raise TransportError("E-REQUEST", f"{text:.40} is not a time.", "write HH:MM, or YYYY-MM-DD HH:MM.")
