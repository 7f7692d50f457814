"""The server that devices enrol at: its control plane, its start, and ``edgewise.Server`` for scripts.

All of it needs the extra `server`.
"""
