"""Distillation: the model that is pruned, the student, also learns what a dense teacher answers to the same batch.

    loss_t = (1 - w_t) task + w_t T^2 KL(teacher || student) + h_t hidden
    w_t = weight r(t), h_t = hidden_weight r(t), r: the ramp from `distill.start` to `distill.end`

Sources: Hinton et al. 2015, arXiv:1503.02531 (T^2 keeps the gradient's size at any temperature T); for hidden states
and the uniform layer map Jiao et al. 2020 (TinyBERT), arXiv:1909.10351.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pat.common.comm import Comm
from pat.pruning.schedules import Ramp
from pat.schema import DistillConfig
from pat.tasks import chunked_loss
from pat.tasks.base import Batch, Task
from pat.tasks.causal_lm import next_labels, row_losses
from pat.training.shares import Shares, tokens

# b samples of a batch, s tokens, v vocabulary or classes, n rows of logits, d hidden size, L layers

CHUNK_ELEMENTS = 1 << 24  # logits of each model that are held in fp32 at a time: 64 MB


class Distiller:
    """Adds a teacher's answers to a task's loss. It keeps nothing but sums for the next logged line."""

    def __init__(
        self,
        teacher: Any,  # a module or a DeepSpeed engine, in eval mode, never trained
        task: Task,
        config: DistillConfig,
        ramp: Ramp,
        layer_map: Sequence[int],  # teacher layer of each student layer; empty where none is compared
        dropped: Callable[[], Collection[int]] = tuple,  # student layers whose output is their input
    ) -> None:
        self.dropped = dropped
        self.teacher, self.task, self.config, self.ramp, self.layer_map = teacher, task, config, ramp, layer_map
        self.weight, self.hidden_weight = config.weight or 0.0, config.hidden_weight
        self._sums = torch.zeros(3, dtype=torch.float64)  # KL, hidden, forwards since the last line
        self._factor = 0.0

    @property
    def of_guessing(self) -> float:
        """max(1, 1 - w + w T^2): the combined loss of a model that guesses is at most this times the task's, as
        KL(teacher || uniform) <= ln C."""
        return max(1.0, 1.0 + self.weight * (self.config.temperature**2 - 1.0))

    def loss(self, model: Any, batch: Batch, t: int, shares: Shares = (1.0, 1.0)) -> Tensor:
        """The combined loss of step t, fp32; the task's alone while the ramp is 0. Collective at ZeRO 3.

        `shares`: of the global batch, for what is a mean over answers, and over tokens. The teacher goes first, so that
        its activations peak before the student has any.
        """
        self._factor = self.ramp(t)
        if self._factor == 0.0:
            return self.task.loss(model, batch) * shares[0]
        if self.task.chunk_tokens is not None:
            return self._chunked(model, batch, self.task.chunk_tokens, shares)
        wanted = self._wanted()
        with torch.no_grad():
            taught = self.task.outputs(self.teacher, batch, **wanted)
        outputs = self.task.outputs(model, batch, **wanted)
        weight = self.weight * self._factor
        loss = (1.0 - weight) * self.task.loss_of(outputs.logits, batch)
        kl = hidden = loss.new_zeros(())
        if weight:
            kl = mean_kl(outputs.logits, taught.logits, self.task.supervised(batch), self.config.temperature)
            loss = loss + weight * self.config.temperature**2 * kl
        if wanted:
            hidden = self._hidden(outputs, taught, batch)
        return self._whole(loss, kl, hidden, shares)

    def _hidden(self, outputs: Any, taught: Any, batch: Batch) -> Tensor:
        return hidden_loss(
            outputs.hidden_states, taught.hidden_states, tokens(batch), self.layer_map, self.dropped()
        )  # fmt: skip

    def _whole(self, loss: Tensor, kl: Tensor, hidden: Tensor, shares: Shares) -> Tensor:
        """Both parts, weighted by their shares of the global batch; also notes them for the log."""
        loss, kl, hidden = loss * shares[0], kl * shares[0], hidden * shares[1]
        self._sums = self._sums.to(kl.device) + torch.stack([kl, hidden, torch.ones_like(kl)]).detach()
        return loss + self.hidden_weight * self._factor * hidden if self.hidden_weight else loss

    def _chunked(self, model: Any, batch: Batch, size: int, shares: Shares) -> Tensor:
        """The same, where neither model's logits exist for more than `size` tokens. Collective at ZeRO 3.

        The teacher runs inside the call of the student's head, and the chunks of both inside that of the teacher's:
        each head's weight is there once, for all chunks. The teacher's activations are gone layer by layer.
        """
        counts, targets = self.task.supervised(batch), next_labels(batch["labels"])
        weight, wanted, taught = self.weight * self._factor, self._wanted(), []

        def inside_student(student: chunked_loss.Head, hidden: Tensor) -> Tensor:
            totals = []

            def inside_teacher(teacher: chunked_loss.Head, states: Tensor) -> Tensor:
                flat = states.flatten(0, 1)

                def rows(logits: Tensor, part: slice) -> Tensor:
                    losses = (1.0 - weight) * row_losses(logits, targets[part])[:, 0]
                    kl = losses.new_zeros(losses.shape)
                    if weight:
                        with torch.no_grad():
                            answers = teacher.own(flat[part])
                        kl = row_kl(logits, answers, self.config.temperature)
                        losses = losses + weight * self.config.temperature**2 * kl
                    return torch.stack([losses, kl], dim=1)

                with torch.enable_grad():
                    totals.append(chunked_loss.sums(student, hidden, rows, counts, size))
                return states

            with torch.no_grad(), chunked_loss.at_head(self.teacher, inside_teacher):
                taught.append(self.task.outputs(self.teacher, batch, **wanted))
            return totals[0]

        with chunked_loss.at_head(model, inside_student):
            outputs = self.task.outputs(model, batch, **wanted)
        loss, kl = outputs.logits / counts.sum()
        hidden = loss.new_zeros(())
        if wanted:
            hidden = self._hidden(outputs, taught[0], batch)
        return self._whole(loss, kl, hidden, shares)

    def _wanted(self) -> dict[str, bool]:
        """What the models are asked for besides logits."""
        return {"output_hidden_states": True} if self.hidden_weight else {}

    def logged(self, world: Comm) -> dict[str, float]:
        """Mean KL and hidden loss since the last line, over all ranks, and the weight of the last step. Collective."""
        kl, hidden, count = world.sum(self._sums).tolist()
        self._sums = torch.zeros_like(self._sums)
        line = {"distill/weight": self.weight * self._factor}
        if count and self.weight:
            line["distill/kl"] = kl / count
        if count and self.hidden_weight:
            line["distill/hidden"] = hidden / count
        return line


def mean_kl(
    student: Tensor,  # (..., v) logits
    teacher: Tensor,  # (..., v) logits, no gradient
    counts: Tensor,  # (...) 1 where a row counts, else 0
    temperature: float,
) -> Tensor:
    """KL(softmax(teacher / T) || softmax(student / T)), mean over the rows that count, fp32.

    Besides the two models' logits there are at most three fp32 chunks of CHUNK_ELEMENTS at a time, 192 MB, and in the
    backward the gradient of the student's logits in their own dtype; never an fp32 copy of all logits.
    """
    v = student.shape[-1]
    rows = row_kl(student.reshape(-1, v), teacher.reshape(-1, v), temperature)
    counts = counts.reshape(-1)
    return (rows * counts).sum() / counts.sum()


def row_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """(n,) fp32: KL(softmax(teacher / T) || softmax(student / T)) of each row of logits (n, v)."""
    rows: Any = _RowKL.apply(student, teacher, temperature)
    return rows


class _RowKL(torch.autograd.Function):
    """KL of each row, in chunks of rows. dKL/dstudent = (softmax(student / T) - softmax(teacher / T)) / T."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """(n,) fp32 of logits (n, v)."""
        ctx.save_for_backward(student, teacher)
        ctx.temperature = temperature
        rows = torch.empty(len(student), dtype=torch.float32, device=student.device)
        for part in row_chunks(student):
            log_p = log_probabilities(teacher[part], temperature)
            log_q = log_probabilities(student[part], temperature)
            rows[part] = log_q.sub_(log_p).mul_(log_p.exp_()).sum(-1).neg_()
        return rows

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """(n, v) in the student's dtype, from the (n,) gradient of the rows."""
        student, teacher = ctx.saved_tensors
        scale = (grads[0] / ctx.temperature)[:, None]
        out = torch.empty_like(student)
        for part in row_chunks(student):
            q = log_probabilities(student[part], ctx.temperature).exp_()
            q.sub_(log_probabilities(teacher[part], ctx.temperature).exp_())
            out[part] = q.mul_(scale[part])
        return out, None, None


def row_chunks(logits: Tensor) -> Iterator[slice]:
    """Rows of (n, v) whose elements are at most CHUNK_ELEMENTS; at least one row."""
    size = max(1, CHUNK_ELEMENTS // logits.shape[1])
    for start in range(0, len(logits), size):
        yield slice(start, start + size)


def log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Logarithm of softmax(logits / T), fp32."""
    return F.log_softmax(logits.float() / temperature, dim=-1)


def hidden_loss(
    student: Sequence[Tensor],  # (b, s, d) each: the embeddings, then each layer's output
    teacher: Sequence[Tensor],  # the same of the teacher, no gradient
    counts: Tensor,  # (b, s) 1 where there is a token, 0 in the padding
    layer_map: Sequence[int],  # teacher layer of each student layer
    dropped: Collection[int] = (),  # student layers that are left out
) -> Tensor:
    """Mean over the student's layers i of the MSE between its layer i and the teacher's layer map[i], fp32.

    A layer whose gate is closed passes on the output of the layer before it, which would then be pulled towards two
    layers of the teacher at once. As in CoFi (Xia et al. 2022, arXiv:2204.00408) and Minitron (Muralidharan et al.
    2024, arXiv:2407.14679) only layers that remain are compared. Recomputed in the backward: the fp32 difference
    exists for one layer at a time.
    """
    pairs = [(i, j) for i, j in enumerate(layer_map) if i not in dropped]
    total = torch.zeros((), dtype=torch.float32, device=counts.device)
    for i, j in pairs:
        pair = (student[i + 1], teacher[j + 1], counts)
        total = total + checkpoint(_layer_mse, *pair, use_reentrant=False, preserve_rng_state=False)
    return total / max(1, len(pairs))


def _layer_mse(student: Tensor, teacher: Tensor, counts: Tensor) -> Tensor:
    """Mean squared difference over the tokens that count and the d channels."""
    rows = (student.float() - teacher.float()).square().mean(-1)
    return (rows * counts).sum() / counts.sum()


def uniform_map(student: int, teacher: int) -> list[int]:
    """Teacher layer of each of the student's layers, from 0: equally spaced, the last to the last.

    map[i] = floor((i + 1) L_teacher / L_student + 1/2) - 1; TinyBERT's g(m) = m L_teacher / L_student, counted from 1.
    """
    return [max(1, (2 * (i + 1) * teacher + student) // (2 * student)) - 1 for i in range(student)]
