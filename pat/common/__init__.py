"""What everything else stands on: files, hashes, collectives, text. Imports nothing else of pat."""
