"""Executes the command of an image with the folder of this file first in PYTHONPATH.

Kubernetes can set a variable of a container, but cannot prepend to the value that the image sets.
The command replaces this process, so it is the container's first process, and gets its arguments
unchanged. Python 3.8 or newer, standard library only.
"""

import os
import sys

folder = os.path.dirname(os.path.abspath(__file__))
own = os.environ.get("PYTHONPATH")
os.environ["PYTHONPATH"] = os.pathsep.join([folder, own]) if own else folder

try:
    os.execvp(sys.argv[1], sys.argv[1:])
except OSError as error:
    print(f"twined: cannot start {sys.argv[1]!r}: {error}", file=sys.stderr)
    # The exit codes of a shell: 127 if it does not exist, 126 if it cannot be executed.
    sys.exit(127 if isinstance(error, FileNotFoundError) else 126)
