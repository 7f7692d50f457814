"""Compile a recipe into the plan that runs: values, defaults, the fold of the parts, and the promise of privacy.

``recipe`` reads a recipe. ``recipe.privacy`` chooses its defaults. ``catalogue`` lists the parts that it can name.
``compile`` makes the ``plan``. ``facts`` is the signed identity of a run, and ``acceptance`` holds a device's checks of
it. ``promise`` and ``disclosure`` describe what a plan promises and reveals.
"""
