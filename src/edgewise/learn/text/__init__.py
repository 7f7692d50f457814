"""From files of a device to blocks of tokens: sources, tables, chats, partitions, tokens, blocks.

``corpus`` finds documents, ``blocks`` makes tokens of them, ``trainer`` is the text trainer.
"""
