"""Noise that an epsilon rests on, one mechanism a file.

Each is a value (``base.Mechanism``) from which plan, promise, privacy card and laws are derived; ``known`` lists them.
"""
