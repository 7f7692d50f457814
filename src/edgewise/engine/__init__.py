"""One round and one run as pure machines, and the loop that drives them over ports.

The server: ``coordinator`` opens and closes rounds, ``loop`` receives, ``round`` and ``exchange`` decide,
``aggregation`` sums. The device: ``device``. What stands at the edges: ``ports``, ``trainer``. No torch, no sockets,
no wall clock.
"""
