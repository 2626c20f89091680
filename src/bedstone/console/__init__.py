"""The web console's listener: who is let in, and the files of its pages.

It owns what stands between a browser and the HTTP API. Everything that a page shows or does goes
through the same API, under the same paths and roles, as from the command line.
"""
