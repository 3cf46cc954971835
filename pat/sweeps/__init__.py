"""A sweep: many runs of one recipe, and their common results.

members.py   from Hydra's multirun syntax to the runs of a sweep
runner.py    runs several at once, each in a process group of its own; signals, failures, exit codes
results.py   sweep.json, the table, the Pareto front
plot.py      the picture; latency.py: seconds of the exported models
"""
