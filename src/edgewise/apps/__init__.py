"""The programs that people call: the command line, simulation, reports, exports, audits, and (``server``) the server.

``cli`` names the commands and imports little; each command's work stands in a file of its name.
"""
