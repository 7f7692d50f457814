"""Simulated devices behind the engine's ports: virtual time, faults, links, keys, and the second server.

Start at ``cohort.SimulatedCohort``.
"""
