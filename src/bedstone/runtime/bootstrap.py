"""`python bootstrap.py LIBRARIES module:attribute …`: find Bedstone, then serve.

Rules:
- The interpreter's own libraries come first. LIBRARIES, a path list, is searched last, and only if
  Bedstone is not installed here.
- Standard library only, and no syntax that an old Python would refuse before it can be told so.
"""

import os
import sys


def main():  # type: () -> int  # noqa: ANN201
    """Put the paths in order and hand over."""
    if sys.version_info < (3, 11):  # noqa: UP036  # this is where an older one is refused
        sys.stderr.write(
            "error: %s is Python %s, expected 3.11 or later\n"  # noqa: UP031
            "hint: name another interpreter with `python:`\n"
            % (sys.executable, sys.version.split()[0])
        )
        return 2
    libraries = sys.argv.pop(1)
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
    # Python put the folder of this file first; the application's belongs there.
    sys.path[:] = [os.getcwd()] + [path for path in sys.path if path not in ("", here)]  # noqa: PTH109
    # What is loaded already, in an interpreter that was forked, says nothing of what is installed.
    finders = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]
    if not any(finder.find_spec("bedstone", None) for finder in finders):
        sys.path.extend(libraries.split(os.pathsep))
    from bedstone.runtime.serve import main as serve

    return serve()


if __name__ == "__main__":
    sys.exit(main())
