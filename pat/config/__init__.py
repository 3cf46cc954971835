"""From the command line to one typed config."""
