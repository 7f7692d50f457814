"""Everything with torch in it: from text on this machine to an update, behind the ``Trainer`` port.

``trainer.make(recipe, recipe_dir, cache_dir)`` is the way in; ``torch_trainer.TorchTrainer`` federates any torch model.
Importing this package imports no torch: take the module that you need.
"""
