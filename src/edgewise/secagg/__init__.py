"""Secure aggregation as pure machines: masks with one server (``client``, ``server``), shares with ``two_server``.

``params`` sizes thresholds, ``messages`` is the wire, ``recovery`` opens sums and names liars, ``merge`` are the parts
of a recipe. The protocol, with vectors to accept and refuse, is docs/protocol.md.
"""
