"""A prompt mix: the prompts of production, how frequent they are, and which answers are right."""
