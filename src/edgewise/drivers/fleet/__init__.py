"""What a server remembers of its fleet: members, tokens, used nonces, mailboxes and uploads, in one SQL database.

All changes go through one writer (``database``). Needs the extra `server`.
"""
