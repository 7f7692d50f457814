"""Shared vocabulary of all layers: vectors, spaces, stages, pipelines, keys, frames, events and errors.

Start with three modules. ``stage`` defines the parts of a pipeline. ``space`` defines what is known of an update before
any data exists. ``pipeline`` checks a chain of parts and runs it. ``part`` turns a function into a part of recipes.
"""
