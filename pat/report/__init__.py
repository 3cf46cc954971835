"""A report of runs, sweeps, exports and comparisons: one page that needs nothing else, for those who decide."""
