"""Search a device's own documents. Documents, index and questions stay on the device.

``index`` cuts documents into passages and writes them, ``embed`` turns text into vectors by a language model, and
``query`` finds passages and an answer in them.
"""
