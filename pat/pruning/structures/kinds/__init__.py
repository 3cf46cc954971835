"""Structures: kinds of units whose removal makes the model smaller. One file each, found by the registry.

    sites(anatomy)     where it is; ValueError, one sentence, where the model has none
    pooled             ranked over the layers (a layer, a sublayer) and not inside each

# h query heads, k KV heads
"""
