"""The pages of a server for people in a browser: runs, devices, enrolment, models, privacy, audit log.

The server renders all pages, which work without scripts. Each has its data as JSON under its path with ``.json``.
"""
