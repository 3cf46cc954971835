"""Whether a difference is one: paired, per slice, and while data still comes in. Arrays in, numbers out."""
