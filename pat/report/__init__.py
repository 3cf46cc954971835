"""A report of runs, sweeps, exports and comparisons: one self-contained page for those who decide."""
