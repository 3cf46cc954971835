"""Checkpoints: written whole, checked when read, and kept as configured."""
