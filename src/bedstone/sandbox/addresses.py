"""The small network of a namespace and the box that is given it: two hosts, IPv4."""

from __future__ import annotations

from typing import Final

NAMESPACE: Final = "10.107.0.1"
BOX: Final = "10.107.0.2"
PREFIX: Final = 30
LOOPBACK: Final = "127.0.0.1"
"""Where they find each other if they are one."""
