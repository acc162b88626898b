"""Measurements: `python -m benchmarks` lists them. Benchmarks are not tests: none of them passes or fails."""
