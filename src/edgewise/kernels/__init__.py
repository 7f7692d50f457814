"""Compiled loops below everything that rounds, samples, packs or masks: what numpy cannot do in one pass.

``hashing`` draws counter-based random words, ``magnitudes`` finds large coordinates, ``rounding`` rounds to grids, and
``bits`` packs integers into bytes. Loops are sequential and give the same bits on every little-endian platform.
"""
