"""The C module, which pyproject.toml cannot declare; everything else stands there.

Where it cannot be compiled the installation continues in pure Python, unless AIOTRACE_REQUIRE_C=1:
`optional` hides even a syntax error.
"""

import os
from pathlib import Path

from setuptools import Extension, setup

SOURCES = Path("aiotrace/_csrc")

setup(
    ext_modules=[
        Extension(
            "aiotrace._c",
            sources=sorted(str(path) for path in SOURCES.glob("**/*.c")),
            depends=sorted(str(path) for path in SOURCES.glob("**/*.h")),
            include_dirs=[str(SOURCES)],
            extra_compile_args=["-O3", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wshadow"],
            optional=os.environ.get("AIOTRACE_REQUIRE_C") != "1",
        )
    ]
)
