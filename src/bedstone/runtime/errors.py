"""Errors that an application sees from the runtime."""

from __future__ import annotations

from bedstone.errors import UnavailableError


class DeadlineExceededError(UnavailableError, TimeoutError):
    """The request's deadline has passed, so a call for it was not sent.

    It is a `TimeoutError` too, for code that knows nothing of Bedstone.
    """
