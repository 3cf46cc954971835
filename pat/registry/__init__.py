"""Versions of variants with their lineage, aliases such as `champion`, and the way back."""
