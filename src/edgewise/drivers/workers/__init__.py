"""Execution of a simulation's jobs, in this process or in a pool of worker processes.

Start at ``executor``.
"""
