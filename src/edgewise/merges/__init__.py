"""How contributions become one total: ``plain`` (the server sees each), ``ring`` (only the sum is decoded), ``robust``.

Masks and shares around ``ring`` are ``secagg.merge``. To add one: docs/howto/own-algorithm.md.
"""
