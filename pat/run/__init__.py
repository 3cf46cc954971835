"""What a run has besides the model: its directory, where it came from, and the request to stop."""
