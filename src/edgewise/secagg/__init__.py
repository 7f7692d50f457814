"""Secure aggregation as pure machines: masks (``client``, ``server``, ``recovery``), or shares (``two_server``).

``params`` computes thresholds, ``messages`` is the wire format, and ``merge`` has the parts that a recipe names.
docs/protocol.md specifies the protocol, with test vectors that an implementation must accept or refuse.
"""
