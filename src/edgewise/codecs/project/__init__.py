"""Codecs that send an update in another basis.

``rotate`` evens out magnitudes by a shared random rotation, ``low_rank`` sends matrices as two thin factors, and
``sketch`` sends a count sketch that the server undoes.
"""
