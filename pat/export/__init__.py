"""A run's checkpoint as a stock Hugging Face folder, proven equal to the effective weights."""
