"""Compiles the C files of this folder when they are needed, into a folder that is gone at the end.

With the flags that Python's own extensions are compiled with, and -O2, as `setup.py` does for aiotrace's own.
"""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).resolve().parent


class NotCompiledError(Exception):
    """There is no C compiler, or not what the file includes; the message is the compiler's first line."""


def compile_extension(source: str, *libraries: str) -> ModuleType:
    """Compile and import an extension module.

    Args:
        source: A C file of this folder; its module is called `aiotrace_` and the file's stem.
        libraries: What it is linked with.

    Raises:
        NotCompiledError: It cannot be compiled here.
    """
    name = f"aiotrace_{Path(source).stem}"
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
        compiler, *flags = (
            word for key in ("CC", "CFLAGS", "CCSHARED") for word in shlex.split(sysconfig.get_config_var(key) or "")
        )
        includes = [f"-I{sysconfig.get_path('include')}", f"-I{FOLDER}"]
        linked = [f"-l{library}" for library in libraries]
        command = [compiler, *flags, "-O2", *includes, "-shared", str(FOLDER / source), "-o", str(target), *linked]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise NotCompiledError(f"{compiler}: not installed") from None
        except subprocess.CalledProcessError as error:
            raise NotCompiledError(next((line for line in error.stderr.splitlines() if "error" in line), "")) from None
        spec = importlib.util.spec_from_file_location(name, target)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module
