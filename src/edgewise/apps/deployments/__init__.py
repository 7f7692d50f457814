"""Deployments of more than one run: the runs in their order, what one hands to the next, and one report.

A deployment of one run is a recipe (``apps.cli.demos``).
"""
