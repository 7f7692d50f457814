"""A mailbox that delivers a script: the cohort of tests that play the devices themselves."""

from __future__ import annotations

from edgewise.core import frame, vector

CRASH = object()  # kills the loop when it is next in the mailbox


class Crashed(Exception):
    """The server died while it waited."""


class Mailbox:
    """A Cohort that delivers a script and then stays silent; what was sent is kept."""

    def __init__(self, script):
        self.script, self.sent, self.clock = list(script), [], 0.0

    def now_s(self):
        return self.clock

    def publish(self, blobs):
        self.blobs = tuple(blobs)
        return tuple(vector.digest(b) for b in blobs)

    def send(self, to, raw):
        self.sent.append((to, frame.load(raw)))

    def receive(self, timeout_s):
        if self.script:
            item = self.script.pop(0)
            if item is CRASH:
                raise Crashed
            return item
        self.clock += min(timeout_s, 1e9)
        return None

    def resume(self, sent, at_s):
        self.clock = at_s
        for one in sent:
            if one.awaited:
                self.send(one.device, one.frame)

    def close_round(self):
        self.script.clear()
