"""The Python API for objects: models, texts and parts that a script or a notebook holds in memory.

``Federation`` turns objects into a recipe and the files that it names. ``apps.simulate.simulation`` plays them.
``Run`` opens the folder of a run. Callbacks and trackers (CSV, MLflow, TensorBoard) follow a run. The
package ``edgewise`` exports these names.
"""
