"""Recipes and runs as folders: read a recipe, choose a run's folder, open it, choose the model that counts.

The lowest wing of ``apps``.
"""
