"""The Python API for objects: models, texts and parts that a script or a notebook holds in memory.

``Federation`` turns objects into a recipe and its files, and ``apps.simulate.simulation`` plays them. ``Run`` opens a
run's folder. Callbacks and trackers (CSV, MLflow, TensorBoard) follow a run. ``edgewise`` exports these names.
"""
