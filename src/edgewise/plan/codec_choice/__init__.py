"""The adaptive codec: a ladder of rungs from the most bytes to the fewest, and the rungs that fit a recipe.

``rungs`` lists the ways to send an update. ``choice`` picks those that fit a recipe and a model.
"""
