"""Merges, which make one total of all contributions: ``plain``, ``robust_mean``, ``centred_clip``, ``screened`` and
``fltrust`` (the server sees each, ``seen``), ``ring`` (blind). ``robust`` has the rules of ``robust_mean``, and those
of groups behind masks.

``secagg.merge`` adds masks and shares around ``ring``. To add a merge: docs/howto/own-algorithm.md.
"""
