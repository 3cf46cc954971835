"""Faults of checkpoints, exports, the engine's groups, distillation and integrations."""

from __future__ import annotations

E, ATTACH = "pat/export/", "pat/integrations/"

REST: dict[str, list[tuple[str, str, str]]] = {
    "pat/checkpoint.py": [
        (
            "            return open_whole(root / name, shards)\n",
            "            return open_whole(root / candidates[-1], shards)\n",
            "resume opens the oldest",
        ),
        ("retention.to_resume(root))[0]", "retention.to_resume(root)[::-1])[0]", "resume from the oldest on"),
        (
            "    if candidates:\n        raise NoneWhole",
            "    if not candidates:\n        raise NoneWhole",
            "a run whose checkpoints are all torn starts anew",
        ),
        ("    retention.set_latest(root, final)\n", "", "latest does not move"),
        ("        os.replace(final, aside)\n", "        shutil.rmtree(final)\n", "a moment without a checkpoint"),
        (
            'shard.view[s.part].copy_(reader.read("weight"',
            'shard.view[s.part].copy_(reader.read("exp_avg"',
            "weights from the moments",
        ),
        (
            "moment[s.part].copy_(reader.read(kind,",
            'moment[s.part].copy_(reader.read("exp_avg",',
            "second moments from the first",
        ),
        ("        _set_optimizer_step(shards, shard, step)\n", "", "Adam's step not restored"),
        ('    pruner.load_state(reader, trainer["pruners"])\n', "", "the pruner's state not restored"),
        ("    restore_engine(engine, trainer)\n", "", "counters and loss scaler not restored"),
        ("    shards.refresh_forward()\n    return trainer", "    return trainer", "the forward keeps the old weights"),
        ("        start = dist.get_rank() * width\n", "        start = 0\n", "every rank gets the first frozen part"),
        ("    pruner.check()\n    final", "    final", "a broken promise is saved"),
        ("for p in files[rank::world]}", "for p in files[rank :: world + 1]}", "files that nobody vouches for"),
    ],
    "pat/retention.py": [
        ("reversed(steps(root))", "steps(root)", "resume falls back to the oldest"),
        ("if name < latest)", "if name > latest)", "resume goes on from what is newer than latest"),
        ("return [latest, *(", "return [*(", "latest is passed over"),
        ("steps(root)[-keep_last:]", "steps(root)[:keep_last]", "the oldest are kept"),
        ('names = [root / "latest", root / "best",', 'names = [root / "latest",', "the best is removed"),
        ("        return found[max(found)]\n", "        return found[min(found)]\n", "last is the first"),
        ('root / ("best" if checkpoint == "best" else "latest")', 'root / "latest"', "best is the latest"),
        (
            '    write_atomic(root / "best", step_dir.name)',
            '    write_atomic(root / "latest", step_dir.name)',
            "best moves latest",
        ),
    ],
    "pat/manifest.py": [
        ("        setattr(_scaler(engine), key, value)\n", "        pass\n", "the loss scaler not restored"),
        ("        setattr(engine, key, value)\n    for", "        pass\n    for", "counters not restored"),
        ('"last_overflow_iter", ', "", "the scaler's last overflow not saved"),
        ('other["shape"] != mine["shape"]', 'len(other["shape"]) != len(mine["shape"])', "other shapes are accepted"),
        ('for key in ("trainable", "pruner"):', 'for key in ("trainable",):', "another pruner is accepted"),
        ("    if theirs:\n", "    if not ours:\n", "a model with less is accepted"),
        ("p.timeline.phase(step - 1)", "p.timeline.phase(step)", "the phase of the coming step"),
    ],
    "pat/checkpoint_reader.py": [
        ("first = piece.offset + low - piece.start\n", "first = piece.offset\n", "the beginning of the piece"),
        ("first = piece.offset + low - piece.start\n", "first = low - piece.start\n", "the offset is forgotten"),
        ("values = flags[first - 8 * byte :]", "values = flags[: last - first]", "flags shifted by up to 7"),
        ("byte = first // 8", "byte = (first + 7) // 8", "flags of the next byte"),
        ("values = stored[first:last]", "values = stored[: last - first]", "scores of the beginning"),
        ('if size != expected["bytes"]:', 'if size < expected["bytes"]:', "longer files are whole"),
        ("if index % share[1] == share[0] and", "if index % share[1] == share[1] and", "no file is hashed"),
        ("    if found != FORMAT:\n", "    if found is None:\n", "other formats are read"),
        (
            "parts.sort(key=lambda piece: (piece.start, piece.rank))",
            "parts.sort(key=lambda piece: piece.rank)",
            "pieces in the order of ranks",
        ),
        ("return self.frozen(name).float()", "return self.frozen(name)", "frozen weights not upcast"),
        ("        if at != start + numel:\n", "        if at > start + numel:\n", "missing elements are not noticed"),
        ("whole[: self.numel(name)]", "whole[-self.numel(name) :]", "padding instead of frozen weights"),
        ("if len(steps) != 1:", "if not steps:", "steps that differ are accepted"),
    ],
    "pat/deepspeed_files.py": [
        ('"step": group.get("step"), **states', '"step": None, **states', "a group's step is forgotten"),
        ("weights_only=True", "weights_only=False", "pickles run code"),
        ('f"bf16_{name}" if bf16 else name', "name", "BF16 files not found"),
    ],
    "pat/hashing.py": [
        ('np.packbits(flags, bitorder="little")', 'np.packbits(flags, bitorder="big")', "bits packed high to low"),
        ("torch.float32) + 0.0", "torch.float32)", "-0.0 has another hash"),
        ("name < self._name:", "name == self._name:", "any order of names"),
        ("self._rest = self._rest[:0]", "pass", "the last flags are hashed again"),
    ],
    f"{E}export.py": [
        ("    hf_config.dtype = dtype\n", "", "a stale dtype in config.json"),
        (
            "        if parameters.get(name) != ours.get(name):\n",
            "        if name not in ours:\n",
            "other shapes are exported",
        ),
        ("        os.replace(partial, out)", "        shutil.copytree(partial, out)", "a folder beside the export"),
        ("        if summary.get(name) not in (None, value):", "        if False:", "hashes of another run"),
        (
            "(hf_config if left.cut is None else left.cut.config).save_pretrained(folder)",
            "hf_config.save_pretrained(folder)",
            "the config of the full shape",
        ),
        (
            '    elif verify == "auto" and weight_bytes >= LOGIT_LIMIT:',
            '    elif verify == "auto":',
            "logits unchecked",
        ),
        ('    dtype = dtype or reader.manifest["dtype"]', '    dtype = dtype or "fp32"', "always fp32"),
    ],
    f"{E}slicing.py": [
        ("&= z.repeat_interleave(part.per_unit)", "&= z.repeat(part.per_unit)", "interleaved units are cut"),
        ("&= z.repeat_interleave(part.per_unit)", "&= (~z).repeat_interleave(part.per_unit)", "keeps what is pruned"),
        ("*= gates[site.name].float().cpu().repeat_interleave(part.per_unit)", "*= 1.0", "gates are not folded"),
        ("factors[name, d][dims[d]] for d", "factors[name, d][: dims[d].sum()] for d", "gates of the first units"),
        ("return tensor.to(dtype)", "return tensor", "folded weights in another dtype"),
        ("tensor = tensor.index_select(dim,", "tensor = tensor.index_select(0,", "cut along the first dimension"),
        ("units = [[z * n for z, n", "units = [[n for z, n", "gone sublayers keep their width"),
    ],
    f"{E}structures.py": [
        (
            "        flags = {site: torch.ones_like(keep) for site, keep in flags.items()}",
            "        pass",
            "a model is cut before its gates are hard",
        ),
        ("hook.z = None if bool((z == 1).all()) else z", "hook.z = None", "the comparison is with an ungated model"),
        ("torch.where(keep[site], value, torch.ones_like(value))", "torch.ones_like(value)", "soft gates not folded"),
        ("stock = all(gate.budget.stock", "stock = any(gate.budget.stock", "stock where one budget is"),
    ],
    f"{E}masks.py": [
        (
            "start, min(CHUNK, numel - start))\n            yield",
            "0, min(CHUNK, numel - start))\n            yield",
            "the first chunk again",
        ),
        ("((math.prod(shape) + 7) // 8,)", "(math.prod(shape) // 8,)", "the last byte is missing"),
        (
            "return torch.ones(numel, dtype=torch.uint8)",
            "return torch.zeros(numel, dtype=torch.uint8)",
            "all pruned before the first selection",
        ),
    ],
    f"{E}merged.py": [
        ("self.scale = cfg.alpha / (cfg.r or 1)", "self.scale = cfg.alpha", "adapters r times too strong"),
        ("delta.T if name in self._transposed else delta", "delta", "Conv1D gets the wrong way round"),
        ("return base + (", "return base - (", "adapters are taken off"),
    ],
    f"{E}writer.py": [
        ("key=lambda spec: (-spec.dtype.itemsize, spec.name))", "key=lambda spec: spec.name)", "unaligned tensors"),
        ("size + spec.numbytes > limit", "size > limit", "files above the limit"),
        ("start, end = end, end + spec.numbytes", "start, end = end, end + spec.numbytes - 1", "offsets off by one"),
        ('text += b" " * (-len(text) % 8)', "pass", "a header that is not aligned"),
        ('"total_size": total}', '"total_size": len(files)}', "the index's total size"),
    ],
    f"{E}source.py": [
        (
            "self.pruned += keep.numel() - int(torch.count_nonzero(keep))",
            "self.pruned += int(torch.count_nonzero(keep))",
            "counts what is kept",
        ),
        ("alive = int(torch.count_nonzero(weight[keep == 0]))", "alive = 0", "living pruned weights are exported"),
        (
            "        if not torch.isfinite(written).all():",
            "        if torch.isnan(written).any():",
            "infinities are exported",
        ),
        ("self.nonzero += int(torch.count_nonzero(written))", "self.nonzero += written.numel()", "zeros count"),
        ("own = self._masked - self.structures.parameters", "own = self._masked", "prunable weights count twice"),
    ],
    f"{E}verify.py": [
        ("if difference <= tolerance * largest:", "if not difference > tolerance:", "an absolute tolerance"),
        ("if mask_sha256 is not None and masks.hash_masks(folder) != mask_sha256:", "if False:", "masks unchecked"),
        ("        structures.gate_forward(model)\n", "", "the comparison is without gates"),
        (
            "            if set(file.keys()) != expected:",
            "            if not expected <= set(file.keys()):",
            "tensors that nobody named",
        ),
        ("if written.dtype != spec.dtype or", "if", "another dtype was written"),
    ],
    f"{E}report.py": [
        ("stream.pruned / stream.prunable if", "stream.pruned / stream.total if", "sparsity of all weights"),
        ('"nonzero_bytes": stream.nonzero * item', '"nonzero_bytes": stream.nonzero', "bytes of one"),
    ],
    f"{E}loader.py": [
        ("outputs.get(made.module, 0) + per_unit * count", "per_unit * count", "fused projections too narrow"),
        ("    if bias and module.bias is not None:", "    if False:", "biases keep their width"),
        ("cache.update(position, position, self.layer_idx)", "pass", "no positions without the first attention"),
    ],
    "pat/engine.py": [
        ("optim.weight_decay if decay else 0.0", "0.0", "weight decay 0"),
        ("decay = len(shape) >= 2 and", "decay = len(shape) >= 1 and", "biases decay"),
        ('key = (owner.get(name, ""), decay, head)', 'key = ("", decay, head)', "no groups of a pruner's own"),
        ('        group["lr"] = group["base_lr"] * factor', '        group["lr"] = factor', "the base rate is ignored"),
        ("return (t + 1) / warmup", "return t / warmup", "a first step without a rate"),
        ("0.5 * (1.0 + math.cos(math.pi * done))", "0.5 * (1.0 - math.cos(math.pi * done))", "a cosine that rises"),
        ("optim.min_lr_ratio + (1.0 - optim.min_lr_ratio) * decayed", "decayed", "the least rate is ignored"),
        ("done = (t - warmup) / max(1, num_steps - warmup)", "done = t / num_steps", "decay counted from step 0"),
        ('"betas": tuple(optim.betas), "eps"', '"betas": (0.9, 0.999), "eps"', "the betas are ignored"),
    ],
    "pat/distill.py": [
        ("loss = (1.0 - weight) * self.task.loss_of", "loss = self.task.loss_of", "the task keeps its whole weight"),
        ("loss = loss + weight * self.config.temperature**2 * kl", "loss = loss + weight * kl", "no T^2"),
        ("weight = self.weight * self._factor\n        loss", "weight = self.weight\n        loss", "no ramp"),
        (
            "taught.hidden_states, tokens(batch), self.layer_map)\n            loss = loss + self.hidden_weight * "
            "self._factor * hidden",
            "taught.hidden_states, tokens(batch), self.layer_map)\n            loss = loss + self.hidden_weight * "
            "hidden",
            "hidden states without the ramp",
        ),
        (
            "kl = row_kl(logits, answers, self.config.temperature)",
            "kl = row_kl(answers, logits, self.config.temperature)",
            "KL the other way round in chunks",
        ),
        ("log_q.sub_(log_p).mul_(log_p.exp_())", "log_p.sub_(log_q).mul_(log_q.exp_())", "KL of the wrong sign"),
        ("scale = (grads[0] / ctx.temperature)", "scale = grads[0]", "a gradient T times too large"),
        (
            "pair = (student[i + 1], teacher[j + 1], counts)",
            "pair = (student[i], teacher[j], counts)",
            "hidden states before the layer",
        ),
        ("return total / len(layer_map)", "return total", "the sum over layers"),
        (
            ".square().mean(-1)\n    return (rows * counts).sum() / counts.sum()",
            ".square().mean(-1)\n    return rows.mean()",
            "padding in the hidden loss",
        ),
        (
            "return (rows * counts).sum() / counts.sum()\n\n\ndef row_kl",
            "return rows.mean()\n\n\ndef row_kl",
            "all rows count in the KL",
        ),
        ("// (2 * student)) - 1 for i", "// (2 * student)) for i", "the layer map off by one"),
        (
            "F.log_softmax(logits.float() / temperature, dim=-1)",
            "F.log_softmax(logits / temperature, dim=-1)",
            "the KL in bf16",
        ),
        ("        self._sums = torch.zeros_like(self._sums)\n", "", "sums that are not reset"),
        ("self.weight * self._factor}", "self.weight}", "the logged weight without the ramp"),
    ],
    "pat/chunked.py": [
        (
            "(work.rows(work.head.own(x), part) * work.weights[part]).sum(0)",
            "work.rows(work.head.own(x), part).sum(0)",
            "rows without weights",
        ),
        (
            "                            have += new",
            "                            have.copy_(new)",
            "the head's gradient of the last chunk",
        ),
        (
            "                            have[part] = new",
            "                            have[: len(new)] = new",
            "gradients of all chunks in the first",
        ),
        ("total = total + found.detach()", "total = found.detach()", "the sum of the last chunk"),
        ("grad.mul_(outer[0][0].to(grad.device))", "grad.clone()", "the outer gradient is ignored"),
        ("slice(start, min(start + size, total))", "slice(start, min(start + size, total - 1))", "a row is left out"),
        ("        del module.forward\n", "        pass\n", "the head stays replaced"),
    ],
    f"{ATTACH}attach.py": [
        ("        self.pruner.begin(engine.global_steps)\n", "", "begin left out"),
        ('config | {"gradient_clipping": 0.0}', "config", "double clipping"),
        (
            "                self.pruner.begin(self.engine.global_steps)\n",
            "                pass\n",
            "begin left out after a load",
        ),
        (
            "self.stats = self.pruner.step(engine.global_steps)",
            "self.stats = self.pruner.step(engine.global_steps + 1)",
            "steps counted from 1",
        ),
        (
            "        self.pruner.check()\n        self.pruner.check_finished()",
            "        self.pruner.check()",
            "a run that never hardened is fine",
        ),
        (
            "        self.pruner.check()\n        self.pruner.check_finished()",
            "        self.pruner.check_finished()",
            "zeros are not checked in the end",
        ),
        (
            "            engine.step = self._step\n        return None",
            "            pass\n        return None",
            "only the first step is the pruner's",
        ),
        (
            "if managed and not engine.is_gradient_accumulation_boundary():",
            "if managed and engine.is_gradient_accumulation_boundary():",
            "steps inside of accumulation",
        ),
        (
            "            saved.save(Path(save_dir), tag,",
            "            (lambda *_: 0)(Path(save_dir), tag,",
            "the pruner's state is not saved",
        ),
        ("step = self.engine.global_steps - 1\n", "step = self.engine.global_steps\n", "figures of the coming step"),
        (
            '            group["base_weight_decay"] = group["weight_decay"]\n',
            '            group["base_weight_decay"] = 0.0\n',
            "no weight decay of masked weights",
        ),
        (
            '[p for p in group["params"] if of_param.get(id(p), "") == owner]',
            'group["params"]',
            "parameters in several groups",
        ),
        ("        elif engine.global_steps:\n", "        elif False:\n", "a pruner that begins in the middle"),
        ("            deepspeed.initialize = plain\n", "            pass\n", "deepspeed.initialize stays replaced"),
    ],
    f"{ATTACH}hf.py": [
        ("            self.pruning.check()\n", "            pass\n", "the end check dropped"),
        ("state.global_step >= state.max_steps", "state.global_step > state.max_steps", "the end is never reached"),
        ("        if args.load_best_model_at_end:\n", "        if False:\n", "an unpruned model is put back"),
        (
            "        self.pruning.start(state.max_steps)",
            "        self.pruning.start(state.max_steps - 1)",
            "schedules of a shorter run",
        ),
    ],
    f"{ATTACH}settings.py": [
        ('"seed": self.content.get("seed", 0)', '"seed": 0', "the seed is ignored"),
        ("            if not pruner.structures\n", "", "structures own matrices"),
        ("        if unknown:\n", "        if False:\n", "unknown keys are ignored"),
    ],
    f"{ATTACH}saved.py": [
        ("if saved.seed != config.seed or", "if", "another seed is accepted"),
        ("    if num_steps != config.train.num_steps:\n", "    if False:\n", "another number of steps is accepted"),
        (
            "    check_same_model(reader.manifest, describe_parameters(engine.module, pruner))\n",
            "",
            "another model is accepted",
        ),
        (
            'dtype = "bf16" if engine.bfloat16_enabled() else',
            'dtype = "fp32" if engine.bfloat16_enabled() else',
            "the saved dtype",
        ),
    ],
}
