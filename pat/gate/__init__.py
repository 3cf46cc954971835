"""Whether a variant may go on: its figures against an envelope."""
