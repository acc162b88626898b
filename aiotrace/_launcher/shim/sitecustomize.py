"""What `aiotrace record` puts in front of a program: Python imports it as `sitecustomize`, before its first line.

    PYTHONPATH=.../aiotrace/_shim:...    Python finds this file        `record` set both, then called execve
    AIOTRACE_RECORD={"pid": ...}         what to record, for that pid alone

The law: **when the program begins, nothing of this is to be seen**. Both variables, sys.path and sys.modules are as
they would be without us, so Pythons that the program starts know nothing of it; the program's own sitecustomize is
imported; and a Python that has another pid than was asked for stays as it is.

This file knows no recording: it is imported by any Python that inherits the environment, so it imports nothing of ours
before it knows that it is meant.
"""

from __future__ import annotations

import importlib
import os
import sys

FOLDER = os.path.dirname(os.path.abspath(__file__))
VARIABLE = "AIOTRACE_RECORD"


def remove_traces() -> str | None:
    """Remove our traces from the environment and from sys.path; returns what the variable held."""
    text = os.environ.pop(VARIABLE, None)
    entries = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry != FOLDER]
    if any(entries):
        os.environ["PYTHONPATH"] = os.pathsep.join(entries)
    else:
        os.environ.pop("PYTHONPATH", None)
    sys.path[:] = [entry for entry in sys.path if entry != FOLDER]
    sys.path_importer_cache.pop(FOLDER, None)
    return text


def import_real_sitecustomize() -> bool:
    """Import the sitecustomize that Python would have found without us; returns whether there is one."""
    ours = sys.modules.pop("sitecustomize", None)
    try:
        importlib.import_module("sitecustomize")
    except ModuleNotFoundError as error:
        if error.name != "sitecustomize":
            raise
        if ours is not None:
            sys.modules["sitecustomize"] = ours  # the import system takes it out itself
        return False
    return True


def start(text: str, *, spawned: bool = False) -> None:
    """Start the recording that a plan describes, if it is meant for this process.

    Args:
        spawned: This process is a child of multiprocessing, to which its parent gave the plan.
    """
    import json

    values = json.loads(text)
    if not spawned and values["pid"] != os.getpid():
        return
    # What `record` could import, for example from its working directory, must be found here too; not by the program.
    added = [entry for entry in values["path"] if entry not in sys.path]
    sys.path += added
    try:
        from aiotrace._launcher import children, plan, process

        begin = process.record_child_process if spawned else process.record_main_process
        begin(plan.Plan.from_dict(values))
        children.watch()
    finally:
        for entry in added:
            sys.path.remove(entry)


if __name__ == "sitecustomize":
    found = remove_traces()
    try:
        has_real_one = import_real_sitecustomize()
    finally:
        if found is not None:
            start(found)
    if not has_real_one:
        raise ImportError("no sitecustomize but ours", name="sitecustomize")  # site takes this for: there is none
elif "SPAWNED" in globals():
    start(globals()["SPAWNED"], spawned=True)
