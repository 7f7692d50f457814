"""Keyword spotting: spectrograms of spoken words, a small transformer that scores each word, its training and measures.

Nothing here reads text. The model, the losses and the data all replace those of ``learn.text``.
"""
