"""Bytes of payloads.

``pack`` writes and strictly reads the layout that a space fixes, and ``golomb`` codes increasing positions.
"""
