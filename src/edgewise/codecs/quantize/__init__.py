"""Codecs that send fewer bits per coordinate.

``quantize`` chooses among the grids of ``eden``, ``codebook`` and its own even ones. ``mixed`` gives each layer a width
of its own, ``wrap`` makes residues of a ring, and ``scales`` rounds the scales that travel.
"""
