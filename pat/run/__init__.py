"""What a run owns outside the model: its directory, where it came from, and the request to stop."""
