"""The noise mechanisms of differential privacy, one a file.

Each is a value (``base.Mechanism``) from which plan, promise and privacy card follow. ``known`` lists them.
"""
