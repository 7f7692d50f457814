"""Merges, which make one total of all contributions: ``plain``, ``ring`` (blind), and rules for what the server sees.

Such rules are ``robust_mean``, ``centred_clip``, ``screened`` and ``fltrust`` (``seen``). ``robust`` has the rules of
groups behind masks, too. ``secagg.merge`` adds masks around ``ring``. To add a merge: docs/howto/own-algorithm.md.
"""
