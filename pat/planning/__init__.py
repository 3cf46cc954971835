"""What a run will need, by arithmetic: memory per rank, communication, checkpoints, selection. No GPU, no ranks.

shapes.py       the parameters of a model by param group, as DeepSpeed will shard them
memory.py       bytes per rank at a ZeRO stage; activations.py: what the forward keeps for the backward
traffic.py      bytes sent per step and per selection; checkpoints.py: bytes on disk
report.py       all of it for many layouts, as a table and as JSON
"""
