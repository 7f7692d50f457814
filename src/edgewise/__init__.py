"""edgewise: federate language-model training on data that stays where it is.

    import edgewise
    result = edgewise.simulate("recipe.toml")                       # a federation on this machine
    for task in edgewise.Device.open().tasks(): ...                 # this machine as a device of one
    for round in edgewise.Server("recipe.toml"): ...                # this process as its server

Importing this package is light: no torch, no numpy.
"""

from typing import TYPE_CHECKING, Any

from edgewise.api import Result, simulate
from edgewise.core.errors import EdgewiseError

if TYPE_CHECKING:
    from edgewise.apps.device.script import Device
    from edgewise.apps.device.task import Outcome, Task
    from edgewise.apps.server.rounds import Round
    from edgewise.apps.server.script import Server

__version__ = "0.1.0"
__all__ = ["Device", "EdgewiseError", "Outcome", "Result", "Round", "Server", "Task", "__version__", "simulate"]
_LATER = {  # imported when they are first used
    "Device": "edgewise.apps.device.script",
    "Outcome": "edgewise.apps.device.task",
    "Round": "edgewise.apps.server.rounds",
    "Server": "edgewise.apps.server.script",
    "Task": "edgewise.apps.device.task",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LATER])
