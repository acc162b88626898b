"""The numbers of layout.h are those of aiotrace/_page/layout.py."""

from __future__ import annotations

import re

from aiotrace._base.package import PACKAGE_FOLDER
from aiotrace._page import layout


def test_each_number_in_c_is_that_of_the_python_layout() -> None:
    with open(f"{PACKAGE_FOLDER}/_csrc/common/layout.h", encoding="utf-8") as file:
        found = re.findall(r"^#define AIOTRACE_(\w+) (.+)$", file.read(), re.MULTILINE)
    assert len(found) > 30
    for name, text in found:
        value = eval(text.replace("AIOTRACE_", ""), {}, vars(layout))
        assert value == getattr(layout, name), name
