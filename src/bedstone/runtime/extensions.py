"""What else of Bedstone serves an application, when it uses it: drivers of the kind ASGI extension.

Rules:
- An extension of ours costs nothing until the application has imported its module, or its
  environment asks for it.
- One of another package is always asked: it is installed beside the application on purpose.
- An extension takes the ASGI application, and gives one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Final, NamedTuple

from bedstone.drivers import Kind
from bedstone.runtime.asgi import Application

EXTENSIONS: Final[Kind[Callable[[Application], Application]]] = Kind(
    "asgi-extension", {"transactions": "bedstone.transactions.web:TransactionsMiddleware"}
)


class Sign(NamedTuple):
    """How an application that uses an extension is known.

    Args:
        module: it has imported this.
        variables: one of these is set in its environment.
    """

    module: str
    variables: tuple[str, ...]

    def shows(self) -> bool:
        """Whether it does."""
        return self.module in sys.modules or any(map(os.environ.get, self.variables))


SIGNS: Final = {
    "transactions": Sign(
        "bedstone.transactions.manager", ("BEDSTONE_TRANSACTIONS_URL", "TRANSACTIONS_URL")
    )
}


def extended(application: Application) -> Application:
    """`application`, an imported one, inside the extensions that it uses.

    Raises:
        InvalidError: an extension can't be loaded.
    """
    for name in EXTENSIONS.names():
        sign = SIGNS.get(name)
        if sign is None or sign.shows():
            application = EXTENSIONS.load(name)(application)
    return application
