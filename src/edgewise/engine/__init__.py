"""One round and one run as pure machines, without torch, sockets or the wall clock, and the loop that drives them.

Server side: ``coordinator`` opens and closes rounds, ``loop`` receives, ``round`` and ``exchange`` decide, and
``aggregation`` sums. Device side: ``device``. Edges: ``ports`` and ``trainer``.
"""
