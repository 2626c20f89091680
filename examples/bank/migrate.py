"""Bring both databases up to date: apply each file of `migrations` once, in order."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psycopg

MIGRATIONS = Path(__file__).parent / "migrations"
LOCK = 0x62616E6B  # any number that only we use: two runs at once take turns


def migrate(url: str) -> list[str]:
    """Returns the names of the migrations that were applied now."""
    applied = []
    with psycopg.connect(url) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        connection.execute("CREATE TABLE IF NOT EXISTS migrations (name text PRIMARY KEY)")
        done = {name for (name,) in connection.execute("SELECT name FROM migrations")}
        for path in sorted(MIGRATIONS.glob("*.sql")):
            if path.name not in done:
                connection.execute(path.read_bytes())
                connection.execute("INSERT INTO migrations VALUES (%s)", (path.name,))
                applied.append(path.name)
    return applied


if __name__ == "__main__":
    for database in ("LEDGER_URL", "SAVINGS_URL"):
        for name in migrate(os.environ[database]):
            sys.stdout.write(f"applied {name}\n")
