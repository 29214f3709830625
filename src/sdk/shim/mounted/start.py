"""Executes the command of an image with the folder of this file first on Python's path.

Kubernetes can set a variable of a container, and cannot put something before the value that the
image gives it. The command takes this process's place, so it is the container's first process,
and is given its arguments as they are. Python 3.8 or newer, standard library only.
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
    # As a shell would: 127 where it is not there, 126 where it cannot be executed.
    sys.exit(127 if isinstance(error, FileNotFoundError) else 126)
