"""Differential privacy: bounds, noise, accounting, and attacks that measure what was promised.

``clip`` bounds, ``noise``, ``distributed`` and ``matrix`` draw, ``accountant`` gives epsilon, ``ledger`` is charged
before a sum is opened, ``card`` says it to people, ``audit`` and ``one_run`` try it.
"""
