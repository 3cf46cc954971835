"""Pruning under ZeRO: masks of weights, gates of structures, and the one pruner that the loop talks to."""
