"""Execution of a simulation's jobs, in this process, in a pool of worker processes, or on a Ray cluster.

Start at ``executor``.
"""
