"""Implementations of the engine's ports: files, worker processes, simulated devices, and HTTP.

``storage`` saves runs and device states. ``workers`` and ``simulation`` run many devices on one machine. ``http`` and
``fleet`` connect enrolled devices to a server.
"""
