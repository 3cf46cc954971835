"""Masks of single weights, blocks and N:M slots, in the optimizer's shards."""
