"""Base models and their trained parameters: load, describe, adapt and export.

``load.load`` reads a model. ``adapters`` chooses the trained parameters. ``exported`` writes a trained model.
"""
