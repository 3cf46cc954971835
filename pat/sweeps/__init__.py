"""A sweep: many runs of one recipe, and what they come to together.

members.py   from Hydra's multirun syntax to the runs of a sweep
runner.py    so many at once, each a process group of its own; signals, failures, exit codes
results.py   sweep.json, the table, the Pareto front
plot.py      the picture; latency.py: seconds of the exported models
"""
