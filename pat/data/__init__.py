"""Text in, batches out."""

from pat.data.prepare import PreparedData, prepare
from pat.data.sampler import BatchLoader, batch_indices, eval_batches, order

__all__ = ["BatchLoader", "PreparedData", "batch_indices", "eval_batches", "order", "prepare"]
