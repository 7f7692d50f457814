"""Text of devices: find documents in files, tables and chats, share them out, and cut them into blocks of tokens.

``corpus`` finds documents, ``blocks`` cuts them into blocks of tokens, and ``trainer`` is the text trainer.
"""
