"""Starting, supervising and stopping ranks: one node, many nodes, Slurm."""
