"""edgewise: federate language-model training on data that stays where it is.

    import edgewise as ew
    run = ew.simulate("recipe.toml")                              # simulate a federation on this machine
    fed = ew.Federation(ew.Recipe(privacy="none"), data={"alice": texts, "bob": more})     # from Python objects
    for task in ew.Device.open().tasks(): ...                     # take part as a device
    for round in ew.Server("recipe.toml"): ...                    # be the server
    for outcome in ew.contribute(device, server, examples=n): ...    # be a site: both at once

Importing this package is light. It imports neither torch nor numpy.
"""

from typing import TYPE_CHECKING, Any

from edgewise.api import simulate
from edgewise.core.errors import EdgewiseError, RecipeError

if TYPE_CHECKING:
    from edgewise.apps.device.personal_task import PersonalTask
    from edgewise.apps.device.script import Device
    from edgewise.apps.device.task import Outcome, Task
    from edgewise.apps.federation.callbacks import STOP, Callback, CsvLogger, EarlyStopping
    from edgewise.apps.federation.federation import Federation
    from edgewise.apps.federation.run import Run, open_run
    from edgewise.apps.federation.settings import Recipe
    from edgewise.apps.federation.sweep import sweep
    from edgewise.apps.federation.trackers import MLflow, TensorBoard, Trackio, WandB
    from edgewise.apps.gateway.site import contribute
    from edgewise.apps.report.summary_types import Summary, summary_schema
    from edgewise.apps.runs.parts import part
    from edgewise.apps.runs.rounds import Round
    from edgewise.apps.server.script import Server
    from edgewise.learn.task import TorchTask
    from edgewise.plan.catalogue import Extension

__version__ = "0.1.0"
_LATER = {  # These names are imported when they are first used.
    "Callback": "edgewise.apps.federation.callbacks",
    "CsvLogger": "edgewise.apps.federation.callbacks",
    "Device": "edgewise.apps.device.script",
    "EarlyStopping": "edgewise.apps.federation.callbacks",
    "Extension": "edgewise.plan.catalogue",
    "Federation": "edgewise.apps.federation.federation",
    "MLflow": "edgewise.apps.federation.trackers",
    "TensorBoard": "edgewise.apps.federation.trackers",
    "Trackio": "edgewise.apps.federation.trackers",
    "WandB": "edgewise.apps.federation.trackers",
    "Outcome": "edgewise.apps.device.task",
    "PersonalTask": "edgewise.apps.device.personal_task",
    "Recipe": "edgewise.apps.federation.settings",
    "Round": "edgewise.apps.runs.rounds",
    "Run": "edgewise.apps.federation.run",
    "STOP": "edgewise.apps.federation.callbacks",
    "Server": "edgewise.apps.server.script",
    "Summary": "edgewise.apps.report.summary_types",
    "Task": "edgewise.apps.device.task",
    "TorchTask": "edgewise.learn.task",
    "contribute": "edgewise.apps.gateway.site",
    "open_run": "edgewise.apps.federation.run",
    "part": "edgewise.apps.runs.parts",
    "summary_schema": "edgewise.apps.report.summary_types",
    "sweep": "edgewise.apps.federation.sweep",
}
# Parts of a recipe are functions here: ew.clip(1.0) is {"kind": "clip", "l2": 1.0}.
PARTS = (
    "centred_clip", "clamp", "clip", "cut_parts", "factors", "fedadagrad", "fedadam", "fedavg", "fedavgm",
    "feddyn", "fednova", "fedprox", "fedyogi", "feedback", "fltrust", "folds", "grouped", "low_rank", "mixed",
    "momentum", "moon", "noise", "products", "quantize", "random_k", "robust_mean", "rotate", "scaffold", "screened",
    "secure_sum", "segments", "shared_sum", "shared_top_k", "sketch", "sum", "top_k", "weigh", "wrap",
    "zeroth_order",
)  # fmt: skip
__all__ = [  # noqa: RUF022
    "EdgewiseError", "RecipeError", "__version__", "simulate",
    "Callback", "CsvLogger", "Device", "EarlyStopping", "Extension", "Federation", "Outcome", "PersonalTask",
    "Recipe", "Round", "Run", "STOP", "MLflow", "Server", "Summary", "Task", "TensorBoard", "TorchTask",
    "Trackio", "WandB", "contribute", "open_run", "part", "summary_schema", "sweep",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in PARTS:
        from edgewise.apps.runs import parts

        return parts.shipped(name)
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LATER, *PARTS])
