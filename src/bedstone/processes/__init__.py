"""The supervisor, its launcher and its client: what parents, reaps and ends every process of a run.

Only the client uses asyncio; everything the supervisor itself imports is the standard library.
"""
