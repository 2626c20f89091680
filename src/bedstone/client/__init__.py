"""The typed API client; `bedstone.client.api:Client` is the whole of it.

Importing this package imports nothing heavy.
"""
