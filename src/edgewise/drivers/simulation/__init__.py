"""A simulated world behind the engine's ports: devices in virtual time, faults, links, keys, the second server.

``cohort.SimulatedCohort`` is the door.
"""
