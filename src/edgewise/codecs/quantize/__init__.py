"""Codecs that send fewer bits a coordinate: grids, codebooks, mixed widths, rings."""
