"""The recipe: one TOML file that describes a run.

``recipe.Recipe`` is the value. ``loading`` reads it from a file. ``findings`` lists every error in it.
"""
