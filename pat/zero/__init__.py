"""All that knows DeepSpeed: its engine, its shards, its files."""
