"""How receivers are told: a POST to a webhook, or a line in the server's log.

Rule: a failure is an `Error` whose message names neither the URL nor a header: both may hold a
token.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol, Self

from bedstone.control.monitoring.alerts.groups import Due
from bedstone.control.monitoring.alerts.webhook import SIGNATURE, payload, signature
from bedstone.errors import UnavailableError, UnknownOutcomeError

if TYPE_CHECKING:
    import httpx

_log = logging.getLogger("bedstone.alerts")
TIMEOUT: Final = 10.0
_ANSWER: Final = 200
"""Bytes of a refusal that are read."""


class Sender(Protocol):
    """Tells one receiver of one group."""

    async def send(self, due: Due, now: float) -> None:
        """Return when the receiver has taken it.

        Raises:
            UnavailableError: it has not.
            UnknownOutcomeError: it may have.
        """
        ...


class Senders:
    """The log, and webhooks over HTTP. Enter it to open connections.

    Redirects are not followed, and the environment's proxies not used: a notification goes where
    the manifest says, or fails.

    Args:
        timeout: seconds that one notification may take.
    """

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self._timeout = timeout
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def send(self, due: Due, now: float) -> None:
        """See `Sender.send`."""
        if due.target.spec is None:
            _write(due)
            return
        import httpx

        if self._client is None:
            self._client = httpx.AsyncClient(trust_env=False, timeout=self._timeout)
        spec = due.target.spec
        body = payload(due, now)
        headers = {**spec.headers, "content-type": "application/json"}
        if spec.secret:
            headers[SIGNATURE] = signature(spec.secret, body, now)
        said = ""
        try:
            async with self._client.stream(
                "POST", spec.webhook, content=body, headers=headers
            ) as answer:
                if not answer.is_success:
                    said = await _beginning(answer)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise UnavailableError("no connection to the receiver") from error
        except httpx.TimeoutException as error:
            raise UnknownOutcomeError("the receiver did not answer in time") from error
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise UnknownOutcomeError(f"the request failed: {type(error).__name__}") from error
        if not answer.is_success:
            raise UnavailableError(
                f"the receiver answered {answer.status_code}" + (f": {said}" if said else "")
            )


async def _beginning(answer: httpx.Response) -> str:
    """What a refusal says, in one line; the rest of it is not read."""
    async for part in answer.aiter_bytes(_ANSWER):
        return " ".join(part.decode(errors="replace").split())
    return ""


def _write(due: Due) -> None:
    for word, alerts in (("firing", due.firing), ("resolved", due.resolved)):
        for alert in alerts:
            _log.warning(
                "alert",
                extra={
                    "state": word,
                    "rule": alert.labels.get("rule", ""),
                    "labels": alert.labels,
                    "summary": alert.summary,
                    "value": alert.value,
                },
            )
