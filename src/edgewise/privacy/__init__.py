"""Differential privacy: bounds, noise, accounting, and audits that measure the claims.

``clip`` bounds an update. ``noise``, ``distributed`` and ``matrix`` draw noise. ``accountant`` computes epsilon.
``ledger`` is charged before a sum is opened. ``card`` states the claim in words. ``audit`` and ``one_run`` test it.
"""
