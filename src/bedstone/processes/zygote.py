"""`python zygote.py ROOT CONFIG`: an interpreter with its modules loaded, forked on request.

The supervisor starts it like any process and holds the other end of descriptor 3, a private pair of
sockets that nothing else can reach. A request carries one end of another pair, the child's own:

    supervisor → zygote   {}, and the child's end; without one: the child ahead has been taken
    zygote → supervisor   {}, and the supervisor's end of the child that it has forked ahead; or, to
                          a request, {"refused": why} on that end: it is then started cold
    child → supervisor    {}, by which the kernel tells its pid (SCM_CREDENTIALS)
    supervisor → child    {"spec": …, "parent": …, "marks": …}, and its output
    child → supervisor    {"running": what was applied}, {"message", "lasting"}, or {"refused": why}

Rules:
- The zygote never sees a specification, so that no secret of a child is in its memory.
- One thread at the fork, by the kernel's word; else it refuses.
- The child is the supervisor's, by `siblings.fork`, or else by two forks of which the one in
  between ends at once: the supervisor gets exit codes, limits lives, and the child outlives the
  zygote.
- Where nothing is asked for a moment, it forks one child ahead. That waits for its order as any,
  has been told nothing, and ends with its zygote.
- A zygote may itself be forked from another: base → libraries → application.

ROOT is where Bedstone is found, for an interpreter that has never heard of it. Standard library
only, and no syntax that an old Python would refuse before it can be told so.
"""

import json
import os
import sys
from types import ModuleType  # noqa: F401 - in a comment


def main():  # type: () -> int  # noqa: ANN201
    """Load, then serve; in a child, become its program."""
    if sys.version_info < (3, 11):  # noqa: UP036  # this is where an older one is refused
        sys.stderr.write("%s is Python %s, expected 3.11\n" % (sys.executable, sys.version[:6]))  # noqa: UP031
        return 2
    root, config = sys.argv[1], json.loads(sys.argv[2])
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
    search = [path for path in sys.path if path not in ("", here)]
    sys.path[:] = [root] + search  # noqa: RUF005
    # The application may have another version of Bedstone, and the zygote above has loaded that.
    theirs = take_out()
    from bedstone.processes import serving

    take_out()
    sys.modules.update(theirs)
    return serving.main(config, search)


def take_out():  # type: () -> dict[str, ModuleType]  # noqa: ANN201
    """Forget the modules of Bedstone, and answer with them."""
    names = [name for name in sys.modules if name.partition(".")[0] == "bedstone"]
    return {name: sys.modules.pop(name) for name in names}


if __name__ == "__main__":
    sys.exit(main())
