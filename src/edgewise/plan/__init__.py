"""Compile a recipe into the plan that runs: values, defaults, the fold of the parts, and the promise of privacy.

``recipe`` reads a recipe, ``catalogue`` lists its parts, and ``compile`` makes the ``plan``. ``facts`` is the identity
of a run, ``acceptance`` a device's checks of it. ``promise`` and ``disclosure`` say what a plan promises and reveals.
"""
