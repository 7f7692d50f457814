"""Read and order the times of rows. Values compare by their meaning, and other values are refused with their row.

    numbers         10 and "10", exactly, whatever their number of digits
    dates           ISO 8601: 2024-01-31, 2024-01-31T10:00:00.5, 2024-01, 2024-W05-3; a space instead of the T
    with a zone     2024-01-31T10:00Z, ...+05:30, ... UTC: compared as instants
    another form    data.time_format, a pattern of Python's strptime

All values of a column must be of one kind. Other forms have more than one reading (01/02/2024) or would sort as letters
(Apr 2024 before Jan 2024), and the hold-out would not be the latest text.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from math import inf
from typing import Any

import numpy as np

from edgewise.core.errors import DataError
from edgewise.core.vector import Array

NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d{1,6})?")
INSTANT = re.compile(r"@([+-]?\d+)\.?(\d*)(Z?)")  # Seconds since 1970 (``stamp``).
MONTH = re.compile(r"\d{4}-\d{2}")
DATE = re.compile(r"\d{4}-\d{2}-\d{2}|\d{4}-W\d{2}(-\d)?")
MOMENT = re.compile(
    r"(?P<time>(\d{4}-\d{2}-\d{2}[Tt ]|\d{8}[Tt ])\d{2}(:?\d{2}(?P<seconds>:?\d{2})?)?)"
    r"([.,](?P<fraction>\d+))? ?(?P<zone>[Zz]|UTC|GMT|[+-]\d{2}(:?\d{2}(:?\d{2})?)?)?"
)
KINDS = {"number": "numbers", "date": "dates without a zone", "instant": "dates with a zone"}
COMMON = (
    "%d.%m.%Y", "%d.%m.%Y %H:%M", "%d.%m.%Y %H:%M:%S", "%m/%d/%Y", "%d/%m/%Y", "%m/%d/%Y %H:%M", "%d/%m/%Y %H:%M",
    "%m/%d/%Y %I:%M %p", "%d/%m/%Y %H:%M:%S", "%m/%d/%Y %H:%M:%S", "%Y/%m/%d", "%Y/%m/%d %H:%M:%S", "%d-%m-%Y",
    "%b %Y", "%B %Y", "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%a, %d %b %Y %H:%M:%S %z", "%H:%M", "%H:%M:%S",
    "%a %b %d %H:%M:%S %Y", "%m/%d/%y", "%d.%m.%y",
)  # fmt: skip
EPOCH, SECOND, ATTO = datetime(1970, 1, 1), timedelta(seconds=1), 10**18
DAY, MOST_WINDOWS = 86400 * ATTO, 2**53

Key = int | float | Decimal


class RowTimes:
    """The times of rows, in the order in which they are added. Memory is one number a row.

    Args:
        name: name of the column.
        form: ``data.time_format``. Empty for numbers and ISO 8601.
    """

    def __init__(self, name: str, form: str) -> None:
        self._name, self._form = name, form
        self._first: tuple[str, str] | None = None  # kind and place of the first row
        self._keys: list[Key] = []

    def add(self, value: Any, where: str) -> None:
        """Add the next row's time.

        Args:
            where: the row's place, for messages.
        Raises:
            DataError: E-DATA-FORMAT for a value that is not a time, or is of another kind than those before it.
        """
        key, kind = self.read(value, where)
        if self._first is None:
            self._first = kind, where
        before, start = self._first
        if kind != before:
            what = f"{where}: `{self._name}` = {value!r:.60} is one of {KINDS[kind]}; from {start} on they are"
            raise DataError("E-DATA-FORMAT", f"{what} {KINDS[before]}.", "write all times in one form.")
        self._keys.append(key)

    def order(self) -> Array:
        """Return the rows from the earliest to the latest, int64[m]. Equal times keep their order."""
        return np.array(sorted(range(len(self._keys)), key=self._keys.__getitem__), np.int64)

    def windows(self, start: str, length: float) -> Array:
        """Return the number of each row's window, int64[m]: max(0, floor((time - start) / length)).

        A date without a zone counts as one in UTC.

        Args:
            start: number or date, ``data.window_start``.
            length: units of a column with numbers, else days.
        Raises:
            DataError: E-DATA-FORMAT where the column has dates and ``start`` is a number, or the other way round, and
                for a row more than 2^53 windows later.
        """
        if self._first is None:
            return np.zeros(0, np.int64)
        kind, found = self._first[0], _comparable_time(start)
        if found is None or (found[1] == "number") != (kind == "number"):
            what = f"data.window_start = {start!r:.40} is not one of {KINDS[kind]}, which `{self._name}` holds."
            raise DataError("E-DATA-FORMAT", what, "write both as dates, or both as numbers.")
        begin = Fraction(found[0])
        step = Fraction(str(length)) * (1 if kind == "number" else DAY)
        finite = all(abs(key) < inf for key in self._keys)
        numbers = [max(0, (Fraction(key) - begin) // step) for key in self._keys] if finite else []
        if not finite or max(numbers, default=0) > MOST_WINDOWS:
            what = f"`{self._name}` has a time that is more than 2^53 windows after data.window_start."
            raise DataError("E-DATA-FORMAT", what, "correct the time, or raise data.window.")
        return np.array(numbers, np.int64)

    def read(self, value: Any, where: str) -> tuple[Key, str]:
        """Read a time into a key to compare, and its kind. Raises as ``add``."""
        found = _declared_time(str(value), self._form) if self._form else _comparable_time(value)
        if found is not None:
            return found
        if self._form:
            what = f"is not written as data.time_format = {self._form!r}"
            raise DataError("E-DATA-FORMAT", f"{where}: `{self._name}` = {value!r:.60} {what}.", "correct one of them.")
        what = f"{where}: `{self._name}` = {value!r:.60} is neither a number nor a date as ISO 8601 writes it."
        fits = [form for form in COMMON if isinstance(value, str) and _declared_time(value, form) is not None][:2]
        how = f"set data.time_format to how it is written: {' or '.join(map(repr, fits))}" if fits else ""
        raise DataError("E-DATA-FORMAT", what, f"{how or 'write 2024-01-31, or set data.time_format'}.")


def utc_text(seconds: str, zone: bool) -> str:
    """Write seconds since 1970 as text that ``RowTimes`` reads exactly, of any year. ``zone``: True for an instant."""
    return f"@{seconds}{'Z' * zone}"


def _comparable_time(value: Any) -> tuple[Key, str] | None:
    """Read a number or a date as (value, kind). None for anything else."""
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return (value, "number") if value == value else None  # NaN has no order.
    if not isinstance(value, str):
        return None
    text = value.strip()
    if NUMBER.fullmatch(text):
        return Decimal(text), "number"
    if m := INSTANT.fullmatch(text):
        return int(m[1] + f"{m[2]:0<18.18}"), "instant" if m[3] else "date"
    if MONTH.fullmatch(text):
        return _iso_time(f"{text}-01", "")
    if DATE.fullmatch(text):
        return _iso_time(text, "")
    if (m := MOMENT.fullmatch(text)) and (not m["fraction"] or m["seconds"]):
        zone = (m["zone"] or "").upper().replace("UTC", "Z").replace("GMT", "Z")
        return _iso_time(m["time"].upper() + zone, m["fraction"] or "")
    return None


def _iso_time(text: str, fraction: str) -> tuple[Key, str] | None:
    """Read an ISO 8601 date. The fraction comes apart, because Python reads only six digits of one."""
    try:
        return _time_key(datetime.fromisoformat(text), int(f"{fraction:0<18.18}"))
    except (ValueError, OverflowError):
        return None


def _declared_time(value: str, form: str) -> tuple[Key, str] | None:
    """Read a date in the recipe's own form. None if it has another."""
    try:
        return _time_key(datetime.strptime(value.strip(), form), 0)
    except (ValueError, OverflowError, re.error):  # A malformed pattern ends here too.
        return None


def _time_key(at: datetime, atto: int) -> tuple[Key, str]:
    """Count from the epoch, in UTC, to the last digit."""
    offset, naive = at.utcoffset(), at.replace(tzinfo=None)
    since = naive - EPOCH - (offset or timedelta(0))
    whole, rest = divmod(since, SECOND)
    return whole * ATTO + rest // timedelta(microseconds=1) * 10**12 + atto, "date" if offset is None else "instant"
