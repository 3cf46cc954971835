"""Models and tokenizers from Hugging Face, and where their structures are."""
