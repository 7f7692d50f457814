"""The server that devices enrol at: control plane, start, and the commands of its operators.

``commands`` is light; the rest needs the extra `server`.
"""
