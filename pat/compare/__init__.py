"""Two models on the same prompts: what differs, whether by chance, and which prompts became wrong."""
