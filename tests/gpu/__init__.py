"""Checks that need a GPU: tests/gpu/run.sh."""
