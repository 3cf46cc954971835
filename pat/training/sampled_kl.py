"""Distillation from tokens that were drawn from the teacher's distribution, in place of all of its logits.

    p = softmax(teacher / T), q = softmax(student / T);  K tokens drawn from p with replacement, p^_i = count_i / K
    KL^ = - sum_i p^_i log q_i - H(p),    E[KL^] = KL(p || q),    E[dKL^/dstudent] = dKL/dstudent = (q - p) / T

The K largest probabilities instead would be biased: they leave out the tail, however they are normalised. The proposal
of the importance sampling is p itself, so that all draws weigh the same. H, the teacher's entropy, has no gradient;
with it the loss is comparable with that of a teacher that runs.

Source: Sparse Logit Sampling, Anshumann et al. 2025, arXiv:2503.16870.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pat.pruning.schedules import Ramp
from pat.schema import DistillConfig
from pat.tasks import chunked_loss
from pat.tasks.base import DRAWN_IDS, DRAWN_WEIGHTS, ENTROPY, Batch, Task
from pat.tasks.causal_lm import next_labels, row_losses
from pat.training.distill import Distiller, log_probabilities, row_chunks
from pat.training.shares import Shares

# b samples of a batch, s tokens, n rows of logits, v vocabulary, K draws of a row, u distinct tokens among them at most


def draw(
    logits: Tensor,  # (n, v) of the teacher
    temperature: float,
    uniform: Tensor,  # (n, K) fp64 in [0, 1)
) -> tuple[Tensor, Tensor]:
    """K tokens of each row's softmax(logits / T), (n, K) int64 in increasing order; its entropy in nats, (n,) fp32.

    By inversion in fp64: a running sum in fp32 would lose the tail of a large vocabulary.
    """
    ids = torch.empty(uniform.shape, dtype=torch.int64, device=logits.device)
    entropy = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    for part in row_chunks(logits):
        log_p = log_probabilities(logits[part], temperature)
        p = log_p.exp()
        entropy[part] = -(p * log_p.clamp_min_(torch.finfo(torch.float32).min)).sum(-1)
        sums = p.double().cumsum_(-1)
        total = sums[:, -1:]
        below = torch.minimum(uniform[part] * total, torch.nextafter(total, torch.zeros_like(total)))
        ids[part] = torch.searchsorted(sums, below.sort(-1).values, right=True)
    return ids, entropy


def counted(
    ids: Tensor,  # (n, K) in increasing order
) -> tuple[Tensor, Tensor, Tensor]:
    """(n,) distinct tokens of each row; these, row after row; how often each was drawn."""
    first = torch.ones_like(ids, dtype=torch.bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    starts = first.flatten().nonzero()[:, 0]
    counts = torch.diff(starts, append=starts.new_tensor([ids.numel()]))
    return first.sum(1), ids.flatten()[starts], counts


def sampled_kl(
    student: Tensor,  # (n, v) logits
    ids: Tensor,  # (n, u) integer: tokens of the teacher
    weights: Tensor,  # (n, u) fp32: p^; 0 where a row has fewer tokens, or does not count
    entropy: Tensor,  # (n,) fp32: H(p)
    temperature: float,
) -> Tensor:
    """(n,) fp32: KL^ of each row; 0 for rows without weights."""
    rows: Any = _SampledCrossEntropy.apply(student, ids, weights, temperature)
    return rows - entropy


class _SampledCrossEntropy(torch.autograd.Function):
    """- sum_i p^_i log q_i of each row, in chunks of rows. d/dstudent = (q sum_i p^_i - p^) / T."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, ids: Tensor, weights: Tensor, temperature: float) -> Tensor:
        """(n,) fp32 of logits (n, v)."""
        ctx.save_for_backward(student, ids, weights)
        ctx.temperature = temperature
        rows = torch.empty(len(student), dtype=torch.float32, device=student.device)
        for part in row_chunks(student):
            log_q = log_probabilities(student[part], temperature)
            rows[part] = -(log_q.gather(1, ids[part].long()) * weights[part]).sum(-1)
        return rows

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """(n, v) in the student's dtype, from the (n,) gradient of the rows."""
        student, ids, weights = ctx.saved_tensors
        scale = (grads[0] / ctx.temperature)[:, None]
        out = torch.empty_like(student)
        for part in row_chunks(student):
            q = log_probabilities(student[part], ctx.temperature).exp_()
            q.mul_(weights[part].sum(-1, keepdim=True)).scatter_add_(1, ids[part].long(), -weights[part])
            out[part] = q.mul_(scale[part])
        return out, None, None, None


class CachedDistiller(Distiller):
    """Adds answers that came with the batch to a task's loss: no teacher runs, and no hidden state is compared."""

    def __init__(self, task: Task, config: DistillConfig, ramp: Ramp) -> None:
        super().__init__(None, task, config, ramp, ())

    def loss(self, model: Any, batch: Batch, t: int, shares: Shares = (1.0, 1.0)) -> Tensor:
        """The combined loss of step t, fp32, a mean over the same rows as with a teacher; the task's alone while the
        ramp is 0. Collective at ZeRO 3."""
        self._factor = self.ramp(t)
        if self._factor == 0.0:
            return self.task.loss(model, batch) * shares[0]
        size, weight = self.task.chunk_tokens, self.weight * self._factor
        counts = self.task.supervised(batch)
        if size is None:
            logits = self.task.outputs(model, batch).logits
            rows = self._rows(logits.flatten(0, 1), batch, slice(None))
            kl = (rows * counts.flatten()).sum() / counts.sum()
            loss = (1.0 - weight) * self.task.loss_of(logits, batch) + weight * self.config.temperature**2 * kl
        else:
            loss, kl = self._sums_in_chunks(model, batch, counts, size, weight) / counts.sum()
        return self._whole(loss, kl, kl.new_zeros(()), shares)

    def _sums_in_chunks(self, model: Any, batch: Batch, counts: Tensor, size: int, weight: float) -> Tensor:
        """(2,): the combined losses of all rows, and their KL, summed."""
        targets = next_labels(batch["labels"])

        def rows(logits: Tensor, part: slice) -> Tensor:
            kl = self._rows(logits, batch, part)
            losses = (1.0 - weight) * row_losses(logits, targets[part])[:, 0]
            return torch.stack([losses + weight * self.config.temperature**2 * kl, kl], dim=1)

        def summed(head: chunked_loss.Head, hidden: Tensor) -> Tensor:
            return chunked_loss.sums(head, hidden, rows, counts, size)

        with chunked_loss.at_head(model, summed):
            return self.task.outputs(model, batch).logits

    def _rows(self, logits: Tensor, batch: Batch, part: slice) -> Tensor:
        """(m,): KL^ of some of the batch's rows. logits (m, v)."""
        ids, weights = (batch[key].flatten(0, 1)[part] for key in (DRAWN_IDS, DRAWN_WEIGHTS))
        return sampled_kl(logits, ids, weights, batch[ENTROPY].flatten()[part], self.config.temperature)
