"""Whether a difference is real: paired, per slice, and while data still comes in. Arrays in, numbers out."""
