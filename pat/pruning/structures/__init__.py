"""Gates on structures: neurons, heads, KV groups, layers."""
