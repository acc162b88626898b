"""What `pip install .` brings: every module, the names that other programs look up, and the licence."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

import aiotrace
from support import ROOT

CONFIGURATION: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = CONFIGURATION["project"]
SOURCES = {"aiotrace": ROOT / "aiotrace", "aiotrace_sinks": ROOT / "sinks" / "aiotrace_sinks"}


def modules_on_disk() -> set[str]:
    """Paths as in a wheel."""
    return {f"{name}/{path.relative_to(root)}" for name, root in SOURCES.items() for path in root.rglob("*.py")}


def test_every_folder_with_modules_is_a_package() -> None:
    """What has no __init__.py is not found by setuptools, and would be missing where aiotrace is installed."""
    modules = modules_on_disk()
    assert {f"{path.rpartition('/')[0]}/__init__.py" for path in modules} <= modules


def test_the_version_is_the_same_everywhere() -> None:
    assert aiotrace.__version__ == PROJECT["version"]


@pytest.mark.parametrize("target", [*PROJECT["scripts"].values(), *PROJECT["entry-points"]["aiotrace.sinks"].values()])
def test_entry_point_targets_exist(target: str) -> None:
    module, _, attribute = target.partition(":")
    assert callable(reduce(getattr, attribute.split("."), importlib.import_module(module)))


@pytest.mark.parametrize("package", SOURCES)
def test_package_is_marked_as_typed(package: str) -> None:
    assert (SOURCES[package] / "py.typed").exists()
    assert CONFIGURATION["tool"]["setuptools"]["package-data"][package] == ["py.typed"]


def test_importing_needs_nothing_but_anyio() -> None:
    """An optional dependency that is imported at the top would be loaded here."""
    program = "import sys, aiotrace, aiotrace_sinks; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    required = {re.split(r"[<>=]", name)[0] for name in PROJECT["dependencies"]}
    assert required == {"anyio", "backports.zstd"}
    optional = {"trio", "uvloop", "backports", "compression", "pytest", "hypothesis"}
    assert not optional & set(done.stdout.split())


@pytest.mark.parametrize("script", ["dev", ".ci/run"])
def test_the_commands_are_executable_shell_scripts(script: str) -> None:
    assert (ROOT / script).stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


@pytest.mark.long
def test_the_wheel_holds_every_module_and_the_licence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert modules_on_disk() <= names
    assert {f"{package}/py.typed" for package in SOURCES} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.endswith((".c", ".h"))], "what is made of them is there"


@pytest.mark.long
def test_an_sdist_holds_all_that_its_commands_need(tmp_path: Path) -> None:
    program = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    folders = ("aiotrace", "sinks", "tests", "benchmarks", "docs", "examples", "models")
    wanted = {path for folder in folders for path in (ROOT / folder).rglob("*.*") if path.is_file()}
    passing = {path for path in wanted if path.suffix in (".pyc", ".so") or "__pycache__" in path.parts}
    there = {str(path.relative_to(ROOT)) for path in wanted - passing} | {"dev", ".ci/run", "README.md", "LICENSE"}
    assert there <= names, there - names
