"""Codecs that send some coordinates: chosen segments, random ones, the largest ones."""
