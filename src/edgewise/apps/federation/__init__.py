"""The Python API for objects: a federation of models, texts and parts that a script or a notebook holds in memory.

``Federation`` turns objects into a recipe and the files that it names, and plays them by ``apps.simulate.simulation``.
``Run`` opens what is left. Names of the package ``edgewise`` lead here.
"""
