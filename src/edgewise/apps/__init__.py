"""Programs that people call, one package each: ``cli`` has the commands, ``federation`` the Python API for objects.

``server``, ``device`` and ``gateway`` are the processes of a federation. ``simulate``, ``audit`` and ``models`` do one
job each. All use ``terminal``, ``report`` and ``runs``. pyproject.toml holds the rules of import.
"""
