"""Audit of a recipe's own code path: empirical epsilon from trials, text leakage, and a page on both.

``audit`` is the entry point.
"""
