"""The engine's ports on real ground: disks, processes, virtual time, and (``http``, ``fleet``) a real network.

``store``, ``journal`` and ``blobs`` keep a run; ``simulated``, ``executor`` and ``pool`` play devices on one machine;
``devices`` and ``device_store`` are a device's own loop and its state.
"""
