"""The error tree, split by what the caller should do next.

```
Error(message, code, hint)
├ InvalidError            fix the input
├ NotFoundError           name something that exists
├ ConflictError           re-read, then retry
├ DeniedError             a policy refused
│ └ VerificationError     a signature, quote or proof failed
├ UnavailableError        not applied; retry after `retry_after` seconds
└ UnknownOutcomeError     may have been applied; find out before retrying
```

`EXIT_STATUS`, `HTTP_STATUS` and `GRPC_STATUS` are the one documented mapping to the outside; the
command line, the HTTP API and gRPC each have one handler that uses it. An exception that is not an
`Error` is a bug of ours, and is reported as `internal`.

Rules: messages are lower-case, say "got X, expected Y", and never contain secrets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a text that a person wrote: `line` and `column` count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class Error(Exception):
    """What every failure that Bedstone reports has in common.

    Args:
        message: what happened, lower-case, one line where possible.
        hint: what to do next, as an imperative.
        position: where in the user's input it is, if it is there.
    """

    code: ClassVar[str] = "internal"

    def __init__(
        self, message: str, *, hint: str | None = None, position: Position | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.position = position

    def __str__(self) -> str:
        return f"{self.position}: {self.message}" if self.position else self.message


class InvalidError(Error):
    """The input is wrong; the same call cannot succeed."""

    code = "invalid"


class NotFoundError(Error):
    """Nothing has that name."""

    code = "not_found"


class ConflictError(Error):
    """What was read has changed since; read it again and retry."""

    code = "conflict"


class DeniedError(Error):
    """A policy refused."""

    code = "denied"


class VerificationError(DeniedError):
    """A signature, quote or proof did not verify."""

    code = "verification_failed"


class UnavailableError(Error):
    """Nothing was applied; the same call may succeed later.

    Args:
        message: what happened.
        retry_after: seconds to wait before the next attempt, if known.
        hint: what to do next.
        position: where in the user's input it is, if it is there.
    """

    code = "unavailable"

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        hint: str | None = None,
        position: Position | None = None,
    ) -> None:
        super().__init__(message, hint=hint, position=position)
        self.retry_after = retry_after


class UnknownOutcomeError(Error):
    """The effect may or may not have been applied; find out before retrying."""

    code = "unknown_outcome"


INTERNAL = "internal"

EXIT_STATUS: dict[str, int] = {
    INTERNAL: 70,  # sysexits.h EX_SOFTWARE
    "invalid": 2,
    "not_found": 3,
    "conflict": 4,
    "denied": 5,
    "verification_failed": 6,
    "unavailable": 7,
    "unknown_outcome": 8,
}
"""Exit status of the command line, by code. 0 is success, 1 a negative answer, 130 an interrupt."""

HTTP_STATUS: dict[str, int] = {
    INTERNAL: 500,
    "invalid": 422,
    "not_found": 404,
    "conflict": 409,
    "denied": 403,
    "verification_failed": 403,
    "unavailable": 503,
    "unknown_outcome": 502,
}
"""HTTP status (RFC 9110), by code."""

GRPC_STATUS: dict[str, int] = {
    INTERNAL: 13,
    "invalid": 3,
    "not_found": 5,
    "conflict": 10,
    "denied": 7,
    "verification_failed": 7,
    "unavailable": 14,
    "unknown_outcome": 2,
}
"""gRPC status code, by code: INVALID_ARGUMENT, NOT_FOUND, ABORTED, PERMISSION_DENIED, UNAVAILABLE,
UNKNOWN."""

_BY_CODE: dict[str, type[Error]] = {
    kind.code: kind
    for kind in (
        InvalidError,
        NotFoundError,
        ConflictError,
        DeniedError,
        VerificationError,
        UnavailableError,
        UnknownOutcomeError,
    )
}


def from_code(code: str, message: str, *, hint: str | None = None) -> Error:
    """Rebuild an error that crossed a wire; an unknown code becomes a plain `Error`."""
    return _BY_CODE.get(code, Error)(message, hint=hint)
