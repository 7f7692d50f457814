"""Faults of machines from vibration: recordings and their windows, an encoder for nodes, layers for an edge server.

Nothing here reads text. The model, the losses and the data all replace those of ``learn.text``.
"""
