# ruff: noqa: INP001 - scripts, not a package
"""Draw `up.svg`: run the bank for real, in a terminal, and keep what the terminal showed.

    .venv/bin/python docs/pictures/render.py

Runs a copy of `examples/bank` in a temporary directory, on port 8080, and takes it down again.
Nothing in the picture is written by hand but the commands.
"""

from __future__ import annotations

import io
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

HERE = Path(__file__).parent
BANK = HERE.parents[1] / "examples" / "bank"
COLUMNS = 92
COMMANDS = (
    "bedstone up examples/bank --detach --wait",
    'curl localhost:8080/accounts --json \'{"owner": "ann", "balance": 10000}\'',
    "bedstone call accounts/healthz --as risk -C examples/bank",
)
_CONTROL = re.compile(r"\x1b\[(\?25[hl]|2K|1A)|\r(?!\n)")

# Rich's own template loads a font from elsewhere; pictures in a README may not.
SVG = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", "Liberation Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px;
}}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def run(command: str, directory: Path) -> str:
    """What a terminal receives from a command; it must succeed, or be an answer of 400 or above."""
    parent, child = pty.openpty()
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": str(COLUMNS),
        "TERM": "xterm-256color",
    }
    with subprocess.Popen(
        ["sh", "-c", command], cwd=directory, env=environment, stdout=child, stderr=child
    ) as process:
        os.close(child)
        received = io.BytesIO()
        try:
            while chunk := os.read(parent, 65536):
                received.write(chunk)
        except OSError:  # a terminal whose last writer has gone
            pass
        finally:
            os.close(parent)
    if process.returncode not in {0, 1}:
        sys.exit(f"{command}: exit status {process.returncode}\n{received.getvalue().decode()}")
    return received.getvalue().decode()


def screen(received: str) -> list[str]:
    """The lines that stay: what a moving line showed meanwhile is gone."""
    lines = [""]
    position = 0
    for part in received.replace("\r\n", "\n").split("\n"):
        for piece in re.split(f"({_CONTROL.pattern})", part):
            match piece:
                case None | "\r" | "?25h" | "?25l" | "2K" | "1A" | "\x1b[?25h" | "\x1b[?25l":
                    pass
                case "\x1b[2K":
                    lines[position] = ""
                case "\x1b[1A":
                    position -= 1
                case _:
                    lines[position] += piece
        position += 1
        if position == len(lines):
            lines.append("")
    while lines and not lines[-1]:
        lines.pop()
    return lines


def main() -> None:
    """Run the commands and write the picture."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), color_system="truecolor")
    with tempfile.TemporaryDirectory(prefix="bedstone-picture-") as folder:
        directory = Path(folder)
        directory.chmod(0o755)  # an instance's own user must pass through
        bank = directory / "examples" / "bank"
        shutil.copytree(BANK, bank, ignore=shutil.ignore_patterns(".bedstone", "__pycache__"))
        try:
            for number, command in enumerate(COMMANDS):
                if number:
                    console.print()
                console.print(Text.assemble(("$ ", "dim"), (command, "bold")))
                for line in screen(run(command, directory)):
                    console.print(Text.from_ansi(line), soft_wrap=False)
        finally:
            run("bedstone down examples/bank", directory)
    picture = console.export_svg(
        title="bedstone up", theme=DIMMED_MONOKAI, code_format=SVG, unique_id="up"
    )
    target = HERE / "up.svg"
    target.write_text("\n".join(line.rstrip() for line in picture.splitlines()) + "\n")
    sys.stdout.write(f"wrote {target.name}, {target.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
