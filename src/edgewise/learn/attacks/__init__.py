"""Attacks on what leaves a device: reconstruction of text, canaries."""
