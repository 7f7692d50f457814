"""edgewise: federate language-model training on data that stays where it is.

    import edgewise
    result = edgewise.simulate("recipe.toml")

Importing this package is light: no torch, no numpy.
"""

from edgewise.api import Result, simulate
from edgewise.core.errors import EdgewiseError

__version__ = "0.1.0"
__all__ = ["EdgewiseError", "Result", "__version__", "simulate"]
