#!/usr/bin/env python3
"""A run of `chaski train`, trained once more by another program: the model, its gradients and AdamW in JAX.

    scripts/bench/jax_training.py --run DIR --out DIR [--steps N]

Takes a finished run's resolved config, initial weights (exported by the program before anything is learned) and
learning rates, reads the rows of its steps from the token file by docs/formats.md and the order of data/sampler.h,
and knows nothing else of Chaski. Dense SwiGLU and Mixture-of-Channels (topk, by the gate) in fp32 on the CPU; of equal
gates at the threshold all are kept.
Prints the distance of both losses and gradient norms as a Markdown table of means; writes each step's to
OUT/steps.jsonl and the trained weights to OUT/model, for `chaski import` and `chaski eval`.

Needs jax, h5py and safetensors from the Python package index. CHASKI names the program (default:
build/release/chaski).
"""

import argparse
import json
import math
import os
import pathlib
import shlex
import shutil
import statistics
import subprocess
import sys
import tomllib

import h5py
import jax
import jax.numpy as jnp
import numpy
from safetensors.numpy import load_file, save_file

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_default_matmul_precision", "highest")

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CHASKI = os.environ.get("CHASKI", str(ROOT / "build/release/chaski"))
MASK = 2**64 - 1


def fail(reason):
    sys.exit(f"jax_training.py: {reason}")


def run(*arguments):
    command = [CHASKI, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        fail(f"{shlex.join(command)} failed:\n{done.stderr}")


def initial_weights(options):
    """By Hugging Face's names: after one step at a rate that changes no weight."""
    config, out = options.run / "config.toml", options.out / "initial"
    shutil.rmtree(out, ignore_errors=True)
    settings = {"run.output": out / "run", "optimizer.lr": 1e-30, "optimizer.weight_decay": 0, "schedule.steps": 1,
                "schedule.warmup_steps": 0, "schedule.decay_steps": 0, "evaluation.tokens": 1}
    run("train", config, *(part for key, value in settings.items() for part in ("--set", f"{key}={value}")))
    run("export", "--checkpoint", out / "run", "--out", out / "model")
    shutil.copytree(out / "model", options.out / "model", dirs_exist_ok=True)  # trained weights replace these
    return load_file(out / "model" / "model.safetensors")


def mix(x):
    """The finalizer of SplitMix64."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & MASK
    return x ^ x >> 31


def permuted(index, count, key):
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    while True:
        left, right = index >> half, index & (1 << half) - 1
        for i in range(8):
            left, right = right, left ^ mix(right ^ mix((key + i) & MASK)) & (1 << half) - 1
        index = left << half | right
        if index < count:
            return index


def rows_of(config, step):
    """Inputs and targets [rows, length] of a step, counted from 1."""
    data, rows = config["data"], config["parallel"]["global_batch"]
    length, tokens = data["sequence_length"], config["tokens"]
    count = (len(tokens) - 1) // length
    first = (step - 1) * rows
    places = []
    for sample in range(first, first + rows):
        epoch, index = divmod(sample, count)
        places.append(permuted(index, count, mix(mix(config["run"]["seed"]) ^ epoch)) if data["shuffle"] else index)
    windows = numpy.stack([tokens[place * length:(place + 1) * length + 1] for place in places]).astype(numpy.int32)
    return windows[:, :-1], windows[:, 1:]


def largest(gates, keep):
    """Which are the `keep` largest of the last axis: the smallest of them, found bit by bit."""
    bits = jax.lax.bitcast_convert_type(gates, jnp.int32)
    order = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    least = jnp.full((*gates.shape[:-1], 1), -2**31, jnp.int32)
    for bit in range(31, -1, -1):
        higher = least + jnp.int32(-2**31 if bit == 31 else 1 << bit)
        enough = jnp.sum(order >= higher, -1, keepdims=True, dtype=jnp.int32) >= keep
        least = jnp.where(enough, higher, least)
    return order >= least


def loss_function(config):
    """Of weights, tokens and targets: the mean cross-entropy."""
    model = config["model"]
    heads, kv_heads, size = model["num_heads"], model["num_kv_heads"], model["head_dim"]
    length = config["data"]["sequence_length"]
    keep = model["moc"]["keep"] if model["ffn"] == "moc" else None
    angles = numpy.outer(numpy.arange(length), model["rope_theta"] ** (-numpy.arange(0, size, 2) / size))
    cosine, sine = (jnp.asarray(f(angles), jnp.float32)[None, :, None] for f in (numpy.cos, numpy.sin))
    causal = jnp.tril(jnp.ones((length, length), bool))

    def norm(x, weight):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + model["rms_norm_eps"]) * weight

    def rotated(x):
        low, high = x[..., :size // 2], x[..., size // 2:]
        return jnp.concatenate([low * cosine - high * sine, high * cosine + low * sine], -1)

    def attention(x, query, key, value, output):
        split = lambda weight, count: (x @ weight.T).reshape(*x.shape[:2], count, size)
        q, k = rotated(split(query, heads)), rotated(split(key, kv_heads))
        k, v = (jnp.repeat(part, heads // kv_heads, 2) for part in (k, split(value, kv_heads)))
        scores = jnp.where(causal, jnp.einsum("btnd,bsnd->bnts", q, k) / math.sqrt(size), -jnp.inf)
        mixed = jnp.einsum("bnts,bsnd->btnd", jax.nn.softmax(scores, -1), v)
        return mixed.reshape(*x.shape[:2], heads * size) @ output.T

    def ffn(x, gate, up, down):
        gates = x @ gate.T
        product = jax.nn.silu(gates) * (x @ up.T)
        if keep is not None:
            product = jnp.where(largest(jax.lax.stop_gradient(gates), keep), product, 0.0)
        return product @ down.T

    def loss(weights, tokens, targets):
        x = weights["model.embed_tokens.weight"][tokens]
        for layer in range(model["num_layers"]):
            of = lambda name: weights[f"model.layers.{layer}.{name}.weight"]
            x = x + attention(norm(x, of("input_layernorm")), *(of(f"self_attn.{n}_proj") for n in "qkvo"))
            projections = (of(f"mlp.{n}_proj") for n in ("gate", "up", "down"))
            x = x + ffn(norm(x, of("post_attention_layernorm")), *projections)
        head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
        logits = norm(x, weights["model.norm.weight"]) @ head.T
        chosen = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
        return jnp.mean(jax.nn.logsumexp(logits, -1) - chosen)

    return loss


def update_function(config):
    optimizer = config["optimizer"]
    (beta1, beta2), clip = optimizer["betas"], optimizer["grad_clip"]
    gradient_of = jax.value_and_grad(loss_function(config))

    def update(state, step, rate, tokens, targets):
        weights, first, second = state
        loss, gradients = gradient_of(weights, tokens, targets)
        norm = jnp.sqrt(sum(jnp.sum(gradient * gradient) for gradient in gradients.values()))
        scale = jnp.minimum(1.0, clip / norm) if clip > 0 else 1.0
        new = {}, {}, {}
        for name, weight in weights.items():
            gradient = gradients[name] * scale
            m = beta1 * first[name] + (1 - beta1) * gradient
            v = beta2 * second[name] + (1 - beta2) * gradient * gradient
            direction = m / (1 - beta1**step) / (jnp.sqrt(v / (1 - beta2**step)) + optimizer["epsilon"])
            if "norm" not in name:
                direction = direction + optimizer["weight_decay"] * weight
            new[0][name], new[1][name], new[2][name] = weight - rate * direction, m, v
        return new, loss, norm

    return jax.jit(update, donate_argnums=0)


def read_config(options):
    path = options.run / "config.toml"
    if not path.exists():
        fail(f"{path} does not exist; --run is the output directory of `chaski train`")
    config = tomllib.loads(path.read_text())
    moc, data = config["model"].get("moc", {}), config["data"]
    if len(data["train"]) != 1 or not pathlib.Path(data["train"][0]).is_file() or data["reset_at_documents"]:
        fail(f"data.train = {data['train']}: takes runs of one file, from here, without data.reset_at_documents")
    if moc.get("pattern", "topk") != "topk" or moc.get("selection", "gate") != "gate":
        fail(f"[model.moc] is {moc}: only pattern topk and selection gate are known")
    with h5py.File(data["train"][0]) as file:
        config["tokens"] = file["tokens"][:]
    return config


def read_steps(options, config):
    """Of the run's metrics: those steps that are to be repeated, which must be there from the first on."""
    path = options.run / config["log"]["jsonl"]
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    rows = [row for row in rows if "loss" in row][:options.steps]
    wanted = min(options.steps, config["schedule"]["steps"])
    if [row["step"] for row in rows] != list(range(1, wanted + 1)):
        fail(f"{path} does not have all steps from 1 to {wanted}; --steps takes fewer")
    if any(row["loss"] is None or row["grad_norm"] is None for row in rows):
        fail(f"{path} has steps whose loss or gradient is not finite")
    return rows


def print_table(steps, width):
    print("| steps | loss | JAX - Chaski, mean | largest distance | gradient norm, JAX / Chaski |")
    print("|---|---|---|---|---|")
    for begin in range(0, len(steps), width):
        part = steps[begin:begin + width]
        distances = [step["jax_loss"] - step["loss"] for step in part]
        print(f"| {part[0]['step']} to {part[-1]['step']} | {statistics.mean(s['loss'] for s in part):.4f} "
              f"| {statistics.mean(distances):+.5f} | {max(map(abs, distances)):.5f} "
              f"| {statistics.mean(s['jax_norm'] / s['norm'] for s in part):.4f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=pathlib.Path, required=True, help="output directory of `chaski train`")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="directory to write to")
    parser.add_argument("--steps", type=int, default=sys.maxsize, help="only so many; default: all of the run")
    options = parser.parse_args()
    config = read_config(options)
    rows = read_steps(options, config)
    weights = {name: jnp.asarray(value) for name, value in initial_weights(options).items()}
    zeros = lambda: {name: jnp.zeros_like(value) for name, value in weights.items()}
    state, update, steps = (weights, zeros(), zeros()), update_function(config), []
    with open(options.out / "steps.jsonl", "w") as file:
        for row in rows:
            step = row["step"]
            state, loss, norm = update(state, jnp.float32(step), jnp.float32(row["lr"]), *rows_of(config, step))
            steps.append({"step": step, "loss": row["loss"], "norm": row["grad_norm"], "jax_loss": float(loss),
                          "jax_norm": float(norm)})
            if step == 1 and abs(float(loss) - row["loss"]) > 1e-3:
                fail(f"the first loss is {float(loss)}, but {row['loss']} in the run: it began with other weights")
            print(json.dumps(steps[-1]), file=file, flush=True)
    save_file({name: numpy.asarray(value) for name, value in state[0].items()},
              options.out / "model" / "model.safetensors", metadata={"format": "pt"})
    print_table(steps, max(1, math.ceil(len(steps) / 12)))


if __name__ == "__main__":
    main()
