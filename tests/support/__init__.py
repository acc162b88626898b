"""What several test files share: fakes, builders of pages and stores, programs to run, checks of the laws."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""
TESTS = ROOT / "tests"
DATA = TESTS / "data"
