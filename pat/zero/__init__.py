"""DeepSpeed from the inside: its engine and config, where it holds weights in memory, what is in its files."""
