"""How this package's own modules are started: nothing that lies in the working directory is ever imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

#: Set for all that a worker or driver starts: Python leaves the working directory out of its search path.
SAFE_PATH = "PYTHONSAFEPATH"


def module_command(module: str, *words: str) -> list[str]:
    """Return the command that runs a module of this package with this Python.

    Programs run in folders that hold the files of a campaign, which may come from someone else: with ``-m`` alone a
    file there called ``yaml.py``, or a folder ``parsl``, would be imported in place of the library.

    Parameters
    ----------
    module
        Its dotted name.
    words
        Its arguments.
    """
    return [sys.executable, "-P", "-m", module, *words]


def safe_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment whose Pythons import nothing from the working directory.

    ``PYTHONSAFEPATH`` is set, and of ``PYTHONPATH`` the entries stay that are absolute: an empty one, as
    ``PYTHONPATH=$PYTHONPATH:/somewhere`` makes it, is the working directory.
    """
    found = {**environment, SAFE_PATH: "1"}
    if "PYTHONPATH" in found:
        places = [p for p in found["PYTHONPATH"].split(os.pathsep) if os.path.isabs(p)]
        found["PYTHONPATH"] = os.pathsep.join(places)
        if not places:
            del found["PYTHONPATH"]
    return found
