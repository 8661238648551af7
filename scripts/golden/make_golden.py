#!/usr/bin/env python3
"""Makes tests/golden/*.h5: reference numbers from PyTorch and transformers for the parity tests.

    python3 -m venv venv && venv/bin/pip install -r scripts/golden/requirements.txt
    venv/bin/python scripts/golden/make_golden.py            # writes into tests/golden
    venv/bin/python scripts/golden/make_golden.py gqa_tied   # only the named ones

Each file holds one small random LLaMA (transformers.LlamaForCausalLM, fp32, eager attention, one
thread), one micro-batch with its logits, loss and gradients, and ten steps of torch.optim.AdamW on
ten other micro-batches. Layout, all floats fp32 unless said otherwise:

    attributes of /      the shape of the model under the names of model/llama_config.h; with
                         Mixture-of-Channels also moc_keep and moc_pattern
    tokens, targets      [rows, sequence_length] i32; target -1 does not count
    positions            same shape, i32; only where documents restart inside a row
    logits               [rows, sequence_length, vocab_size]
    loss                 f64: mean over the targets that count, attribute num_targets
    weights/NAME, gradients/NAME    under the Hugging Face names
    training             not in every file; attributes: options of AdamW, the schedule, clipping (0: none)
    training/tokens, targets, positions    [10, rows, sequence_length]
    training/learning_rates, losses, gradient_norms    [10] f64; losses before each update
    training/weights/NAME           after ten steps
"""

import argparse
import math
import pathlib

import h5py
import numpy
import torch
import transformers

NUM_STEPS = 10
IGNORED = -1

BASE = dict(max_position_embeddings=256, rope_theta=10000.0, rms_norm_eps=1e-6, tie_embeddings=False)
ADAMW = dict(beta1=0.9, beta2=0.95, epsilon=1e-8, weight_decay=0.1, clip=0.0)
COSINE = dict(schedule="cosine", peak=3e-3, steps=NUM_STEPS, warmup_steps=3, decay_steps=0, min_lr_ratio=0.1)

# Each case says what it is there to catch.
CASES = {
    # Plain multi-head attention; no clipping.
    "mha_untied": dict(
        model=dict(BASE, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=4,
                   head_dim=8, vocab_size=97),
        rows=4, sequence_length=16, training=dict(ADAMW, **COSINE)),
    # Grouped queries, tied head, other rotary base and epsilon; always clipped.
    "gqa_tied": dict(
        model=dict(BASE, hidden_size=40, intermediate_size=80, num_layers=2, num_heads=8, num_kv_heads=2,
                   head_dim=8, vocab_size=113, tie_embeddings=True, rope_theta=500000.0, rms_norm_eps=1e-5),
        rows=3, sequence_length=24,
        training=dict(ADAMW, **dict(COSINE, schedule="linear", clip=0.25))),
    # One key-value head, no size a multiple of a vector, heads·head_dim != hidden_size, some
    # targets that do not count; clipped in some steps only.
    "mqa_odd": dict(
        model=dict(BASE, hidden_size=40, intermediate_size=77, num_layers=3, num_heads=5, num_kv_heads=1,
                   head_dim=6, vocab_size=131),
        rows=2, sequence_length=19, ignored=0.2,
        training=dict(ADAMW, **dict(COSINE, schedule="wsd", warmup_steps=2, decay_steps=4, clip=6.0,
                                    beta2=0.999, weight_decay=0.01))),
    # Documents packed into rows: positions restart and attention stays inside the document. Both
    # epsilons so large that one in the wrong place shows.
    "documents": dict(
        model=dict(BASE, hidden_size=36, intermediate_size=80, num_layers=2, num_heads=4, num_kv_heads=2,
                   head_dim=10, vocab_size=89, rms_norm_eps=1e-2),
        rows=3, sequence_length=29, document_length=7, ignored=0.1,
        training=dict(ADAMW, **dict(COSINE, schedule="constant", warmup_steps=4, clip=2.8, epsilon=1e-3))),
    # Sequences over several tiles of attention, more tokens than a chunk of the head, wide heads,
    # documents longer and shorter than a tile.
    "long": dict(
        model=dict(BASE, hidden_size=24, intermediate_size=48, num_layers=1, num_heads=2, num_kv_heads=1,
                   head_dim=80, vocab_size=61),
        rows=4, sequence_length=203, document_length=60,
        training=dict(ADAMW, **dict(COSINE, clip=0.9))),
    # One token a row, which attends to nothing but itself: queries and keys have no gradient, so that
    # AdamW would only amplify rounding errors. Hence no training.
    "single_token": dict(
        model=dict(BASE, hidden_size=17, intermediate_size=13, num_layers=1, num_heads=1, num_kv_heads=1,
                   head_dim=2, vocab_size=23),
        rows=7, sequence_length=1, training=None),
    # Mixture-of-Channels: each token uses only the channels with its largest gates. Some kept gates are
    # negative. No training: a selection that rounding turns over would not be an error.
    "moc_topk": dict(
        model=dict(BASE, hidden_size=20, intermediate_size=45, num_layers=2, num_heads=2, num_kv_heads=1,
                   head_dim=8, vocab_size=37),
        moc=dict(keep=28, pattern="topk"), rows=3, sequence_length=13, document_length=6, ignored=0.1,
        training=None),
    # Two of each eight channels; the last group has five.
    "moc_two_of_eight": dict(
        model=dict(BASE, hidden_size=20, intermediate_size=45, num_layers=3, num_heads=2, num_kv_heads=2,
                   head_dim=8, vocab_size=37, rms_norm_eps=1e-2, tie_embeddings=True),
        moc=dict(keep=12, pattern="2:8"), rows=2, sequence_length=17, training=None),
}

# Gates this close to the border of a selection might be taken differently by other arithmetic.
SMALLEST_MARGIN = 1e-4


def build(shape, generator):
    config = transformers.LlamaConfig(
        hidden_size=shape["hidden_size"], intermediate_size=shape["intermediate_size"],
        num_hidden_layers=shape["num_layers"], num_attention_heads=shape["num_heads"],
        num_key_value_heads=shape["num_kv_heads"], head_dim=shape["head_dim"],
        vocab_size=shape["vocab_size"], max_position_embeddings=shape["max_position_embeddings"],
        rms_norm_eps=shape["rms_norm_eps"], tie_word_embeddings=shape["tie_embeddings"],
        rope_parameters={"rope_type": "default", "rope_theta": shape["rope_theta"]},
        bos_token_id=None, eos_token_id=None, pad_token_id=None, attn_implementation="eager",
        use_cache=False)
    model = transformers.LlamaForCausalLM(config).to(torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Larger than a training run's, so that no gradient is tiny and attention is not flat.
            if weight.dim() == 1:
                weight.copy_(1 + 0.2 * torch.randn(weight.shape, generator=generator))
            else:
                std = 0.5 if name.endswith("embed_tokens.weight") else 1.3 / math.sqrt(weight.shape[1])
                weight.copy_(std * torch.randn(weight.shape, generator=generator))
    return model.train()


def kept_mask(gate, keep, pattern):
    """1 where a channel is kept, and the smallest distance between a kept and a dropped gate."""
    groups = [gate] if pattern == "topk" else list(gate.split(8, dim=-1))
    masks, margins = [], []
    for group in groups:
        count = keep if pattern == "topk" else min(2, group.shape[-1])
        values, index = torch.topk(group, min(count + 1, group.shape[-1]), dim=-1)
        masks.append(torch.zeros_like(group).scatter(-1, index[..., :count], 1.0))
        if values.shape[-1] > count:
            margins.append((values[..., count - 1] - values[..., count]).min().item())
    mask = torch.cat(masks, dim=-1)
    assert torch.all(mask.sum(-1) == keep)
    return mask, min(margins)


def select_channels(model, keep, pattern):
    """Makes every FFN of the model a Mixture-of-Channels; returns the list that margins are added to."""
    margins = []

    def forward_of(mlp):
        def forward(x):
            gate = mlp.gate_proj(x)
            mask, margin = kept_mask(gate.detach(), keep, pattern)
            margins.append(margin)
            return mlp.down_proj(torch.nn.functional.silu(gate) * mask * mlp.up_proj(x))
        return forward

    for layer in model.model.layers:
        layer.mlp.forward = forward_of(layer.mlp)
    return margins


def draw_batch(case, generator):
    rows, length = case["rows"], case["sequence_length"]
    vocab_size = case["model"]["vocab_size"]
    tokens = torch.randint(vocab_size, (rows, length), generator=generator)
    targets = torch.randint(vocab_size, (rows, length), generator=generator)
    ignored = torch.rand((rows, length), generator=generator) < case.get("ignored", 0.0)
    targets[ignored] = IGNORED
    positions = None
    if "document_length" in case:
        starts = torch.rand((rows, length), generator=generator) < 1 / case["document_length"]
        starts[:, 0] = True
        positions = torch.zeros((rows, length), dtype=torch.int64)
        for i in range(1, length):
            positions[:, i] = torch.where(starts[:, i], 0, positions[:, i - 1] + 1)
    return tokens, targets, positions


def forward(model, batch):
    """Logits and mean loss."""
    tokens, targets, positions = batch
    rows, length = tokens.shape
    index = torch.arange(length)
    first = torch.zeros_like(tokens) if positions is None else index - positions
    visible = (index[None, None, :] <= index[None, :, None]) & (index[None, None, :] >= first[:, :, None])
    mask = torch.zeros((rows, 1, length, length)).masked_fill(~visible[:, None], torch.finfo(torch.float32).min)
    if positions is None:
        positions = index.expand(rows, length)
    logits = model(input_ids=tokens, position_ids=positions, attention_mask=mask).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    return logits, loss


def check_documents(model, batch):
    """The mask and the positions must mean: every document as if it were alone."""
    tokens, _, positions = batch
    logits, _ = forward(model, batch)
    for row in range(tokens.shape[0]):
        starts = [i for i in range(tokens.shape[1]) if positions[row, i] == 0] + [tokens.shape[1]]
        for begin, end in zip(starts, starts[1:]):
            alone = model(input_ids=tokens[row : row + 1, begin:end]).logits[0]
            error = (alone - logits[row, begin:end]).abs().max()
            assert error < 1e-4, f"document at {begin} of row {row}: logits differ by {error}"


def learning_rate(options, step):
    """Independent statement of optim/learning_rate.h; `step` counts from 0."""
    peak, warmup, steps = options["peak"], options["warmup_steps"], options["steps"]
    floor = peak * options["min_lr_ratio"]
    if step < warmup:
        return peak * (step + 1) / warmup
    if options["schedule"] == "constant":
        return peak
    if options["schedule"] == "wsd":
        left = steps - 1 - step
        if left >= options["decay_steps"]:
            return peak
        return floor + (peak - floor) * left / options["decay_steps"]
    # The first step after the warm-up still has the peak, the last one the floor.
    progress = (step - warmup) / (steps - 1 - warmup)
    if options["schedule"] == "linear":
        return peak + (floor - peak) * progress
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(model, options):
    matrices = [p for p in model.parameters() if p.dim() == 2]
    norms = [p for p in model.parameters() if p.dim() == 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": options["weight_decay"]}, {"params": norms, "weight_decay": 0.0}],
        betas=(options["beta1"], options["beta2"]), eps=options["epsilon"])


def train(model, batches, options):
    optimizer = make_optimizer(model, options)
    rates, losses, norms = [], [], []
    for step, batch in enumerate(batches):
        rates.append(learning_rate(options, step))
        for group in optimizer.param_groups:
            group["lr"] = rates[-1]
        optimizer.zero_grad()
        _, loss = forward(model, batch)
        loss.backward()
        limit = options["clip"] if options["clip"] > 0 else math.inf
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), limit).item())
        optimizer.step()
        losses.append(loss.item())
    return rates, losses, norms


def write_tensors(group, named):
    for name, value in named:
        group.create_dataset(name, data=value.detach().numpy().astype(numpy.float32))


def write_batch(group, batch):
    for name, value in zip(("tokens", "targets", "positions"), batch):
        if value is not None:
            group.create_dataset(name, data=value.numpy().astype(numpy.int32))


def write_training(group, model, batches, options):
    group.attrs.update(options)
    rates, losses, norms = train(model, batches, options)
    for key, value in (("learning_rates", rates), ("losses", losses), ("gradient_norms", norms)):
        group.create_dataset(key, data=numpy.array(value))
    write_batch(group, [None if parts[0] is None else torch.stack(parts) for parts in zip(*batches)])
    write_tensors(group.create_group("weights"), model.named_parameters())
    print(f"  training: losses {losses[0]:.4f} … {losses[-1]:.4f}, norms {min(norms):.3f} … {max(norms):.3f}")


def make(name, case, path):
    generator = torch.Generator().manual_seed(int.from_bytes(name.encode(), "little") % 2**31)
    model = build(case["model"], generator)
    margins = select_channels(model, **case["moc"]) if "moc" in case else []
    batch = draw_batch(case, generator)
    batches = [draw_batch(case, generator) for _ in range(NUM_STEPS)]
    if batch[2] is not None:
        check_documents(model, batch)
    with h5py.File(path, "w") as file:
        for key, value in case["model"].items():
            file.attrs[key] = float(value) if isinstance(value, float) else int(value)
        if "moc" in case:
            file.attrs.update(moc_keep=case["moc"]["keep"], moc_pattern=case["moc"]["pattern"])
        file.attrs["made_with"] = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"
        write_tensors(file.create_group("weights"), model.named_parameters())
        write_batch(file, batch)
        logits, loss = forward(model, batch)
        assert not margins or min(margins) >= SMALLEST_MARGIN, f"margin {min(margins)}: draw another case"
        loss.backward()
        write_tensors(file, [("logits", logits)])
        file.create_dataset("loss", data=loss.item())
        file.attrs["num_targets"] = int((batch[1] != IGNORED).sum())
        write_tensors(file.create_group("gradients"), ((n, p.grad) for n, p in model.named_parameters()))
        smallest = min(p.grad.norm().item() for p in model.parameters())
        print(f"{path.name}: {model.num_parameters()} parameters, loss {loss.item():.4f}, "
              f"smallest gradient norm {smallest:.2e}")
        if case["training"]:
            write_training(file.create_group("training"), model, batches, case["training"])
    print(f"  {path.stat().st_size} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; none: all")
    root = pathlib.Path(__file__).resolve().parents[2]
    parser.add_argument("--out", type=pathlib.Path, default=root / "tests" / "golden")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.cases or CASES:
        make(name, CASES[name], arguments.out / f"{name}.h5")


if __name__ == "__main__":
    main()
