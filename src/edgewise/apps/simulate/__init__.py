"""A simulated run from its recipe to its report: load, federate, compare with baselines.

``simulation`` is the door.
"""
