"""Programs that people call, in wings: ``cli`` holds the commands, ``federation`` the Python API for objects.

``server``, ``device`` and ``gateway`` are the processes of a real federation; ``simulate``, ``audit`` and ``models``
do one job each; ``terminal``, ``report`` and ``runs`` are used by all of them. pyproject.toml holds who may import
whom.
"""
