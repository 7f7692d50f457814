"""One round and one run as pure machines, and the loop that drives them over ports.

Server side: ``coordinator`` opens and closes rounds, ``loop`` receives frames, ``round`` and ``exchange`` decide, and
``aggregation`` sums. Device side: ``device``. Edges: ``ports`` and ``trainer``. Nothing here uses torch, sockets or the
wall clock.
"""
