"""Compiled loops below all code that rounds, samples, packs or masks. numpy cannot do this work in one pass.

``hashing`` draws counter-based random words, ``magnitudes`` finds large coordinates, ``rounding`` rounds to grids, and
``bits`` packs integers into bytes. Loops are sequential and give the same bits on every little-endian platform.
"""
