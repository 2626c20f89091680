"""Builds the guest's agent with the package, where cargo is; else only `microvm` is missing."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

AGENT = "src/bedstone/sandbox/microvm/bedstone-agent"


class AgentHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs before a wheel, or an editable installation, is made."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the agent, and make the wheel one of its platform if it is in it."""
        root = Path(self.root)
        if shutil.which("cargo") and (root / "agent/build.sh").is_file():
            built = subprocess.run(["sh", "agent/build.sh"], cwd=root, check=False)
            if built.returncode:
                self.app.display_warning("the guest's agent was not built: no microvm")
        if version != "editable" and (root / AGENT).is_file():
            build_data["pure_python"] = False
            build_data["tag"] = "py3-none-linux_x86_64"
