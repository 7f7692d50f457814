"""Programs that people call, one package each.

``cli`` holds the commands, and ``federation`` the Python API for objects. ``server``, ``device`` and ``gateway`` are
the processes of a real federation. ``simulate``, ``audit`` and ``models`` do one job each. All of them use
``terminal``, ``report`` and ``runs``. The import rules are in pyproject.toml.
"""
