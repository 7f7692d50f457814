"""Transport between devices and a server: identities, signed requests over TLS, mailboxes, resumable transfers.

``link`` is the device's side and needs no torch. ``serving`` and the modules that it imports need the extra `server`.
"""
