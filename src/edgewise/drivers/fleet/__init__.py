"""Durable state of a server's fleet in one SQL database: members, tokens, used nonces, mailboxes and uploads.

All changes go through one writer (``database``). Needs the extra `server`.
"""
