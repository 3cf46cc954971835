"""Production against a reference: has the traffic drifted, have outputs, and which prompts became worse."""
