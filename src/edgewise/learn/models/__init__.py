"""Base models and what of them is trained: load, describe, adapt, export.

``load`` is the door.
"""
