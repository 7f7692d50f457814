"""The engine's ports on real ground: disks, processes, virtual time, and a network.

``storage`` keeps runs and device states, ``workers`` and ``simulation`` play devices on one machine, ``http`` and
``fleet`` connect enrolled devices to a server.
"""
