"""Headers that every answer of the console carries, whatever it answers.

The policy names what the pages load and nothing else: their own files. No script or style stands in
a page itself, none is made from text (Trusted Types, of which nobody may make any), and no other
site may frame it.
"""

from __future__ import annotations

from starlette.types import Message, Send

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""CSP 3 (w3.org/TR/CSP3) and Trusted Types."""

SECURITY: tuple[tuple[bytes, bytes], ...] = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"origin-agent-cluster", b"?1"),
    (
        b"permissions-policy",
        b"camera=(), geolocation=(), microphone=(), payment=(), usb=(), serial=(), midi=()",
    ),
)
_STORED = (b"cache-control", b"no-store")
"""What an answer says that does not say itself how long it may be kept: of the API, every one."""


def secured(send: Send) -> Send:
    """Put the headers on whatever is sent."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            names = {name for name, _ in SECURITY}
            headers = [pair for pair in message.get("headers", ()) if pair[0].lower() not in names]
            if not any(name.lower() == b"cache-control" for name, _ in headers):
                headers.append(_STORED)
            message = {**message, "headers": [*headers, *SECURITY]}
        await send(message)

    return sending
