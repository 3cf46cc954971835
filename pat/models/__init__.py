"""Models and tokenizers from Hugging Face."""

from pat.models.build import build_config, build_model, check_fits
from pat.models.tokenizers import build_tokenizer, byte_tokenizer, tokenizer_digest

__all__ = ["build_config", "build_model", "build_tokenizer", "byte_tokenizer", "check_fits", "tokenizer_digest"]
