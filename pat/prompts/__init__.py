"""A prompt mix: what a model is asked in production, how often, and what a right answer is."""
