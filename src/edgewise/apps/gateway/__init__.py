"""A gateway: a process near the devices, run by another operator than the server's.

``start`` joins it to its server and serves.
"""
