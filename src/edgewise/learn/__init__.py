"""Local training with torch: from text on this machine to an update, behind the ``Trainer`` port.

``text.trainer.make(recipe, recipe_dir, cache_dir)`` makes the text trainer, and ``torch_task.TorchTrainer`` federates
any torch model. Importing this package does not import torch. Import the module that you need.
"""
