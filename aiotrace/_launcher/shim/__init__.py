"""The folder that `aiotrace record` puts in front of PYTHONPATH: its only file is `sitecustomize`."""
