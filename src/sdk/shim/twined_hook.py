"""An import hook that patches modules when they are loaded.

Python imports `sitecustomize` when it starts. A `sitecustomize` of this program, first in
PYTHONPATH, installs this hook and runs the `sitecustomize` that it hides. A Python process that
imports none of the modules pays for one dictionary lookup per import. A patch that fails is reported
on stderr in one line, and the program runs without it. Python 3.8 or newer, standard library only.
"""

import os
import sys


def warn(message):
    """Print a warning on stderr, in one line."""
    print("twined: " + " ".join(str(message).split()), file=sys.stderr)


def install(after, before=None):
    """Run `before[name]()` and `after[name](module)` around the loading of each named module."""
    # PYTHONPATH may have two such `sitecustomize`: the patches of the first one win.
    for finder in sys.meta_path:
        if type(finder).__name__ == _TwinedFinder.__name__:
            return finder.add(before or {}, after)

    sys.meta_path.insert(0, _TwinedFinder(before or {}, after))


def run_next(name, file):
    """Run the module that the one of this name and file hides. Python reports its exceptions."""
    from importlib.machinery import PathFinder

    # Folders are compared, because a mounted file may be a link into another folder.
    here = os.path.realpath(os.path.dirname(file))
    own = [i for i, entry in enumerate(sys.path) if os.path.realpath(entry) == here]
    spec = PathFinder.find_spec(name, sys.path[own[-1] + 1 :] if own else [])

    if spec is None or spec.loader is None:
        return

    from importlib.util import module_from_spec

    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def _run(patch, name, *args):
    try:
        patch(*args)
    except Exception as error:
        warn(f"{name} was not patched: {type(error).__name__}: {error}")


class _TwinedFinder:
    """First in sys.meta_path. Wraps the loaders of modules that other finders find."""

    def __init__(self, before, after):
        self._before = dict(before)
        self._after = dict(after)

    def add(self, before, after):
        for own, more in ((self._before, before), (self._after, after)):
            own.update({name: patch for name, patch in more.items() if name not in own})

    def find_spec(self, name, path=None, target=None):
        if name not in self._after and name not in self._before:
            return None

        for finder in sys.meta_path:
            if type(finder).__name__ == _TwinedFinder.__name__:
                continue

            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec(name, path, target) if find_spec else None

            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    patches = self._before.get(name), self._after.get(name)
                    spec.loader = _PatchingLoader(spec.loader, *patches)
                return spec

        return None


class _PatchingLoader:
    """Wraps a loader, and patches the module that it loaded."""

    def __init__(self, loader, before, after):
        self._loader = loader
        self._before = before
        self._after = after

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        name = module.__spec__.name
        # The module must not show the wrapper.
        module.__loader__ = module.__spec__.loader = self._loader

        if self._before is not None:
            _run(self._before, name)

        self._loader.exec_module(module)

        if self._after is not None:
            _run(self._after, name, module)
