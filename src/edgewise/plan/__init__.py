"""Compile a recipe into the plan that runs: values, defaults, the fold of the parts, and the promise of privacy.

``recipe`` reads a recipe, ``trust`` and ``recipe.privacy`` choose its defaults, ``catalogue`` knows the parts, and
``compile`` makes the ``plan``. ``facts`` are its signed identity, ``acceptance`` holds a device's checks of it, and
``disclosure`` and ``promise`` say what it reveals.
"""
