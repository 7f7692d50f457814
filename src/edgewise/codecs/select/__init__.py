"""Codecs that send some coordinates of an update.

``segments`` sends chosen layers, ``random_k`` random coordinates, and ``top_k`` each device's largest ones.
``shared_top_k`` sends the largest coordinates of the last release, the same on all devices.
"""
