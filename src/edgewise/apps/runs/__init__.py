"""Recipes and runs as folders: read a recipe, place a run, open one, say which of its models counts.

The lowest wing of ``apps``.
"""
