"""Answers of a server that may lie: of bounded size, never decompressed, and in the form that edgewise servers give.

    with client.stream("GET", path) as answer:
        got = received(answer, ANSWER_BYTES)
    number = entry(got.document(), "number", int)

A small compressed answer can have a thousand times its bytes, and an answer need not end. So a device reads the bytes
as they travel and stops at a limit. An answer that is not of edgewise is an error like one of the network. The device
asks again, and gives up with E-CONNECT.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx2

from edgewise.core.errors import REGISTRY, TransportError

T = TypeVar("T", int, str)
ANSWER_BYTES = 2**22  # the largest answer that is not a frame, a list for operators, or a share of a sum
LONGEST_WAIT_S = 3600.0  # the longest wait that a server can ask for
# Refusals that end by themselves. A request that was delivered twice (E-REPLAY) is signed anew.
PAUSES = ("E-RATE", "E-BUSY", "E-STALL", "E-REPLAY")


class Wait(Exception):
    """A refusal that ends by itself. ``least_s``: seconds that the server asks to wait."""

    def __init__(self, error: TransportError, least_s: float = 0.0) -> None:
        super().__init__(str(error))
        self.error, self.least_s = error, least_s


@dataclass(frozen=True)
class Answer:
    """An answer with all of its bytes."""

    status: int
    headers: Mapping[str, str]
    content: bytes = field(repr=False)

    def document(self) -> Any:
        """Parse JSON. Raises Wait for other bytes."""
        try:
            return json.loads(self.content)
        except (ValueError, RecursionError):
            raise Wait(foreign("it is not JSON")) from None

    def retry_after_s(self, now_s: Callable[[], float] = time.time) -> float:
        """Return the seconds that ``Retry-After`` asks for, as a number or as a date. 0 without the header."""
        text = self.headers.get("retry-after", "0")
        try:
            wait_s = float(text) if text.isdigit() else parsedate_to_datetime(text).timestamp() - now_s()
        except (ValueError, OverflowError):
            wait_s = 0.0
        return min(max(0.0, wait_s), LONGEST_WAIT_S)

    def refusal(self, now_s: Callable[[], float] = time.time) -> Exception:
        """Turn a refusal into its error, or into Wait where the request may be sent again."""
        try:
            refusal = json.loads(self.content)
            code, what, fix = str(refusal["code"]), str(refusal["what"]), str(refusal["fix"])
        except (ValueError, KeyError, TypeError, RecursionError):
            code, what, fix = "", f"the server answered with status {self.status}.", "ask its operator."
        error = TransportError(code if code in REGISTRY else "E-CONNECT", what, fix)
        if code in PAUSES or self.status >= 500:
            return Wait(error, self.retry_after_s(now_s))
        return error


def received(answer: httpx2.Response, limit_bytes: int) -> Answer:
    """Read an HTTP answer that is streamed.

    Args:
        limit_bytes: the largest size. At most one piece of the network more is in memory.
    Raises:
        Wait: for a larger answer, for a compressed one, and for a redirection.
        httpx2.TransportError: where the connection fails.
    """
    _check(answer)
    content = bytearray()
    for piece in answer.iter_raw():
        _add(content, piece, limit_bytes)
    return Answer(answer.status_code, answer.headers, bytes(content))


async def received_answer_async(answer: httpx2.Response, limit_bytes: int) -> Answer:
    """Read an answer of an asynchronous client. As ``received``."""
    _check(answer)
    content = bytearray()
    async for piece in answer.aiter_raw():
        _add(content, piece, limit_bytes)
    return Answer(answer.status_code, answer.headers, bytes(content))


def _check(answer: httpx2.Response) -> None:
    if 300 <= answer.status_code < 400:
        raise Wait(foreign(f"it has status {answer.status_code}"))
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise Wait(foreign("it is compressed"))


def _add(content: bytearray, piece: bytes, limit_bytes: int) -> None:
    content += piece
    if len(content) > limit_bytes:
        raise Wait(foreign(f"it has more than {limit_bytes} bytes"))


def entry(document: Any, name: str, kind: type[T], least: int = 0) -> T:
    """Return a value of an HTTP answer's JSON object.

    Args:
        kind: the type that it must have.
        least: smallest value of a number.
    Raises:
        TransportError: E-CONNECT for another document.
    """
    found = document.get(name) if isinstance(document, dict) else None
    if type(found) is not kind or (isinstance(found, int) and found < least):
        raise foreign(f"it has no valid {name}")
    return found


def foreign(why: str) -> TransportError:
    """Make the error for an answer that no edgewise server gives."""
    what = f"the answer is not one of an edgewise server: {why}."
    return TransportError("E-CONNECT", what, "check the address, and whether a proxy answers in the server's place.")
