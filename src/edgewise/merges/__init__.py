"""Rules that make one total of all contributions: ``plain`` (the server sees each), ``ring`` (blind), ``robust``.

``secagg.merge`` adds masks and shares around ``ring``. To add a merge: docs/howto/own-algorithm.md.
"""
