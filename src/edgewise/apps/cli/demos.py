"""Demonstrations that ship with edgewise: their recipes, their data, and the sentences printed before one starts."""

from __future__ import annotations

from pathlib import Path

from edgewise.apps.cli.shipped import FOLDER
from edgewise.core.errors import RecipeError
from edgewise.plan.recipe.findings import nearest

SAYS = {
    "plays": (
        "24 characters of Shakespeare are the devices. Each keeps its own lines. The server gets masked updates, "
        "rounded to 4 bits."
    ),
    "edge-llm": (
        "480 devices hold some lines each. Each trains adapters on a base in 4 bits, adds its noise, and splits the "
        "result into two shares for two servers."
    ),
    "code": (
        "The packages of Python's standard library are the devices. Each package has names that no other uses. Such "
        "vocabularies favour training alone."
    ),
    "industrial": (
        "Nine nodes of three factories teach a vendor's model the faults of their machines. Activations go up once, in "
        "4 bits, and samples stay on the nodes. Two runs train it, and two others are baselines."
    ),
    "smart-home": (
        "52 households teach a small model the wake word that each has chosen. A household sends some hundred bytes a "
        "round, and its sound stays where it is."
    ),
}
NEEDS = {  # demonstrations whose data does not ship, and what --data names
    "industrial": "a file of recordings of vibration (`edgewise explain vibration`)",
    "smart-home": "a file of spectrograms of spoken keywords (`edgewise explain keywords`)",
}
DEPLOYED = ("industrial",)  # They are several runs (``apps.deployments``).
NETWORKED = ("plays", "edge-llm")  # They also run on enrolled processes (``network_demo``).


def demo_recipe(name: str) -> Path:
    """Return the recipe file of a demonstration. Raises RecipeError(E-UNKNOWN) with the nearest name."""
    if name not in SAYS:
        near = nearest(name, SAYS)
        hint = f"did you mean `{near}`?" if near else f"one of: {', '.join(SAYS)}."
        raise RecipeError("E-UNKNOWN", f"no demonstration is called {name!r:.80}.", hint)
    return FOLDER / f"{name}.toml"


def data_setting(name: str, data: Path | None) -> dict[str, str]:
    """Return the recipe's setting for the file that ``--data`` names. Empty for a demonstration whose data ships.

    Raises RecipeError(E-COMBO) for a file that the demonstration does not read, and E-MISSING where it needs one.
    """
    if name not in NEEDS and data is not None:
        raise RecipeError(
            "E-COMBO", f"the data of the demonstration {name!r:.40} ships with edgewise.", "leave out --data."
        )
    if name in NEEDS and data is None:
        raise RecipeError(
            "E-MISSING", f"the data of the demonstration {name!r:.40} does not ship.", f"give --data: {NEEDS[name]}."
        )
    return {} if data is None else {"data.path": str(data.resolve())}
