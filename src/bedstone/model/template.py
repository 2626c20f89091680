"""What `bedstone init` writes: a commented manifest, and the small program that it runs."""

from __future__ import annotations

import re
from typing import Final

_TEMPLATE: Final = """\
# What Bedstone runs: `bedstone up` starts it, `bedstone schema` prints all that may stand here.
app: {name}

# Where requests from outside enter. The longest path wins.
gateway:
  port: 8080
  routes:
    - {{path: /, to: web}}

workloads:
  web:
    # An ASGI application, served for you; or any program that listens on $PORT:
    #   command: [python, web.py]
    run: web:app
    # How many instances run.
    replicas: 1
    # It gets requests once this answers: a path, tcp, or {{command: [program, argument]}}.
    ready: /
    # All that it may reach, by name; everything else is denied. It finds a workload at
    # http://NAME/ and a database in the variable NAME_URL.
    uses: []
    # Its environment; ${{env.NAME:-default}} is taken from yours.
    # env:
    #   GREETING: ${{env.GREETING:-hello}}
    # Where its source is, and a command that runs once before each new version:
    # path: web
    # prepare: [python, -m, migrate]

# databases:
#   ledger: {{engine: postgres}}
"""

SAMPLE_FILE: Final = "web.py"
SAMPLE: Final = '''\
"""A web service with no dependency: an ASGI application."""


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = b"hello from Bedstone\\n"
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
'''
"""The program that the template's manifest runs, for `SAMPLE_FILE` beside it."""


def template(name: str) -> str:
    """A manifest to start from.

    Args:
        name: what to call the app, such as the directory's name; made a valid name if it is none.
    """
    return _TEMPLATE.format(name=app_name(name))


def app_name(text: str) -> str:
    """The valid name of an app that is nearest to a text."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).lstrip("-0123456789")[:40].strip("-")
    return f"{name}-app"[:40] if name in {"node", "server"} else name or "app"
