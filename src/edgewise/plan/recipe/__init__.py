"""The recipe: one TOML file that describes a run, its sections, and everything that is wrong with it.

``recipe.Recipe`` is the value, ``loading`` reads it from a file.
"""
