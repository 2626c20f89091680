"""The images of this machine, as sandboxes need them; the libraries are loaded at first use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bedstone.sandbox.protocol import ImageRoot


class MachineImages:
    """See the protocol `bedstone.sandbox.protocol.Images`."""

    async def find(
        self, image: str, holder: str, tell: Callable[[str], None], *, lazy: bool
    ) -> ImageRoot:
        """The root of an image; see the protocol."""
        from bedstone.boxes.roots import find_root
        from bedstone.images.reference import Reference

        Reference.parse(image)  # a directory would be past the policy of images
        return await find_root(image, holder, lazy=lazy, tell=tell)

    async def let_go(self, holder: str) -> None:
        """The holder needs its image no longer; see the protocol."""
        from bedstone.boxes.roots import let_go

        await asyncio.to_thread(let_go, holder)

    async def let_go_all(self, beginning: str) -> None:
        """No holder whose name begins so needs its image; see the protocol."""
        from bedstone.boxes.roots import let_go_all

        await asyncio.to_thread(let_go_all, beginning)

    def user(self, root: ImageRoot) -> tuple[int, int]:
        """The user of the image; see the protocol."""
        from bedstone.boxes.roots import find_user

        return find_user(root.path, root.user)
