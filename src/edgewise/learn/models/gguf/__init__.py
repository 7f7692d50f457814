"""GGUF files of models and adapters, for llama.cpp and the programs that use it.

``architectures`` names the tensors and settings, ``vocabulary`` writes the tokenizer, ``files`` writes and reads back.
"""
