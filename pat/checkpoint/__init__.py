"""Checkpoints: written whole, checked when read, as many as are wanted."""
