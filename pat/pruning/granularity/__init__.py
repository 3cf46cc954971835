"""What is pruned as one: a weight, a block of weights, a slot of an N:M group; the contract is `types.Granularity`.

One file each, found by the registry.
"""
