"""The conditions under which a device works: quiet hours, the owner's command, text to train on, bytes per day.

    conditions = Conditions(policy)
    reason = conditions.refusal(now_s, sent_today=record.today(now_s), next_bytes=largest)      # None: it may work

Times are local, also when clocks change. Any failure of the owner's command forbids work.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence

from edgewise.apps.device.policy import MB, Policy

ANSWER_S = 10.0  # time limit of the owner's command
FRESH_S = 30.0  # time for which its answer counts
DAY = 24 * 60


class Conditions:
    """The conditions of one policy.

    Args:
        ask: runs the owner's command. Returns why the command forbids work, or None.
        text: whether the device trains on the text that the policy names.
    """

    def __init__(
        self, policy: Policy, ask: Callable[[Sequence[str]], str | None] | None = None, text: bool = True
    ) -> None:
        self._policy, self._ask, self._text = policy, ask or asked, text
        self._answer: str | None = None
        self._asked_s = float("-inf")

    def refusal(self, now_s: float, sent_today: float = 0.0, next_bytes: float = 0.0) -> str | None:
        """Return the reason why the device does not work now, in words. None: it may work.

        Args:
            now_s: seconds since 1970.
            sent_today: bytes sent since midnight.
            next_bytes: the most that the next round may send.
        """
        if self._text and not self._policy.data.given:
            return "the policy names no text: data.path is empty"
        if (until := quiet_hours_end(self._policy.when.ranges, now_s)) is not None:
            return f"quiet hours until {until // 60:02d}:{until % 60:02d}"
        if (why := self.too_much(sent_today, next_bytes)) is not None:
            return why
        command = self._policy.when.command
        if command and not 0.0 <= now_s - self._asked_s < FRESH_S:
            self._answer, self._asked_s = self._ask(command), now_s
        return self._answer

    def too_much(self, sent_today: float, next_bytes: float = 0.0) -> str | None:
        """Return the words for a day's limit of bytes that is used up, or that the next round might pass, else None.

        Args: as ``refusal``.
        """
        allowed = self._policy.limits.upload_mb_per_day * MB
        if sent_today + next_bytes <= allowed:
            return None
        sentence = f"{sent_today / MB:.3g} of {allowed / MB:g} MB have left today"
        return f"{sentence}, and a round may send {next_bytes / MB:.3g}" if next_bytes else sentence


def quiet_hours_end(ranges: Sequence[tuple[int, int]], now_s: float) -> int | None:
    """Return the minute of the day at which the present quiet hours end. None: it is no quiet hour."""
    local = time.localtime(now_s)
    now = 60 * local.tm_hour + local.tm_min
    ends = [end for start, end in ranges if (now - start) % DAY < (end - start) % DAY]
    return max(ends, key=lambda end: (end - now) % DAY) if ends else None


def asked(command: Sequence[str]) -> str | None:
    """Run the owner's command, and return why it forbids work. None: it allows work.

    The command gets no input, and its output is dropped.
    """
    name = os.path.basename(command[0])[:100]
    try:
        done = subprocess.run(
            list(command), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            timeout=ANSWER_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"your command {name} gave no answer within {ANSWER_S:g} s"
    except (OSError, ValueError) as e:
        return f"your command {name} cannot be started ({type(e).__name__})"
    return None if done.returncode == 0 else f"your command {name} says no (exit status {done.returncode})"
