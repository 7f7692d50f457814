"""Codecs that send an update in another basis: rotations, low-rank factors, sketches."""
