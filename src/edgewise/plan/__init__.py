"""From a recipe to the plan that runs: values, defaults, the fold of the parts, and what may be promised.

``recipe`` and ``section`` read a recipe, ``words`` and ``trust`` choose its defaults, ``catalogue`` knows the parts,
``compile`` makes the ``plan``; ``facts`` are its signed identity, ``acceptance`` a device's checks of it, ``promise``
what it says of privacy.
"""
