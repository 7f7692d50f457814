"""The vocabulary of every layer: vectors and their layout, spaces, stages and pipelines, keys, frames, events, errors.

Start with ``stage`` (the parts of a pipeline), ``space`` (what is known of an update before any data exists) and
``pipeline`` (the fold that checks them, and the chain at work). ``part`` makes a function a part of recipes.
"""
