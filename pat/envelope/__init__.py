"""How much quality may be lost, and what must be gained: the limits, and whether figures are inside."""
