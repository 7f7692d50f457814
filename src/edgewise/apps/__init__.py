"""What people call: the command line, the simulation, reports and exports, audits, and (``server``) the server.

``cli`` names the commands and imports little; each command's work stands in a file of its name.
"""
