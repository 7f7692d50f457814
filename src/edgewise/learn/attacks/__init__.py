"""Attacks that measure the leakage of updates: reconstruction of text, membership inference, and canaries."""
