"""Secure aggregation as pure machines.

With one server, devices add masks that cancel in the sum (``client``, ``server``, ``recovery``). With two servers, each
device splits its update into two additive shares (``two_server``).
``params`` computes thresholds. ``messages`` defines the wire format. ``merge`` holds the parts that a recipe names.
docs/protocol.md specifies the protocol, with test vectors that an implementation must accept or refuse.
"""
