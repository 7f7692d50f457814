"""Algorithms of a run, one a file: a server half (``base.Strategy``) and a client half (``client.Client``).

The server half is two pure functions that turn the mean update of a round into the next model. The client half runs on
devices beside training. To add one: docs/howto/own-algorithm.md.
"""
