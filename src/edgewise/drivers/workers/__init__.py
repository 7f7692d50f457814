"""Where a simulation's jobs run: in this process, or in a pool of worker processes.

``executor`` is the door.
"""
