#!/usr/bin/env python3
"""Training speed and memory of PyTorch on the same shapes, to hold `chaski bench train` against: LLaMA of
transformers, fused AdamW, random tokens.

    pytorch_baseline.py --preset llama-60m --batch 8 --sequence 256 --threads 2 [--compile]
    pytorch_baseline.py --device cuda --preset llama-1b --batch 8 --sequence 2048 --compile

On a CPU in fp32; on a GPU by default as `bf16` of Chaski: fp32 weights, gradients and moments, products and
attention in bf16 (autocast). Prints one JSON object: tokens_per_second is the median of the measured steps,
peak_rss_bytes is the process's (interpreter and libraries included; imported_rss_bytes is what they take
before the model exists), peak_device_bytes what PyTorch had of the GPU. Needs scripts/golden/requirements.txt;
--compile also needs g++, on a GPU Triton. Where transformers is missing, the same model written out here.
"""

import argparse
import contextlib
import json
import math
import os
import resource
import statistics
import time

# hidden, intermediate, layers, heads of model/llama_config.cpp; vocabulary 32000, untied.
PRESETS = {
    "llama-9m": (128, 352, 4, 4),
    "llama-20m": (256, 688, 4, 4),
    "llama-60m": (512, 1376, 8, 8),
    "llama-130m": (768, 2048, 12, 12),
    "llama-350m": (1024, 2736, 24, 16),
    "llama-1b": (2048, 5461, 24, 32),
    "llama-7b": (4096, 11008, 32, 32),
}
VOCAB_SIZE = 32000


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="llama-60m")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: fp32 on a CPU, bf16 on a GPU")
    parser.add_argument("--batch", type=int, default=8, help="rows of a micro-batch, one a step")
    parser.add_argument("--sequence", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="measured steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps before that")
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model with its loss")
    return parser.parse_args()


def rss_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def own_model(torch, hidden, intermediate, layers, heads, length):
    """The LLaMA of transformers, for where that is not installed. Its attention is scaled_dot_product_attention."""
    nn, functional, head_dim = torch.nn, torch.nn.functional, hidden // heads

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList([nn.RMSNorm(hidden, eps=1e-6) for _ in range(2)])
            self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
            self.output = nn.Linear(hidden, hidden, bias=False)
            self.gate_up = nn.Linear(hidden, 2 * intermediate, bias=False)
            self.down = nn.Linear(intermediate, hidden, bias=False)

        def forward(self, x, cosines, sines):
            rows, tokens, _ = x.shape
            q, k, v = self.qkv(self.norms[0](x)).view(rows, tokens, 3, heads, head_dim).permute(2, 0, 3, 1, 4)

            def rotate(y):
                low, high = y.chunk(2, dim=-1)
                return (y * cosines + torch.cat((-high, low), dim=-1) * sines).to(y.dtype)

            attended = functional.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
            x = x + self.output(attended.transpose(1, 2).reshape(rows, tokens, hidden))
            gate, up = self.gate_up(self.norms[1](x)).chunk(2, dim=-1)
            return x + self.down(functional.silu(gate) * up)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(VOCAB_SIZE, hidden)
            self.blocks = nn.ModuleList([Block() for _ in range(layers)])
            self.norm = nn.RMSNorm(hidden, eps=1e-6)
            self.head = nn.Linear(hidden, VOCAB_SIZE, bias=False)
            angles = torch.outer(torch.arange(length).float(),
                                 torch.exp(torch.arange(0, head_dim, 2) * (-math.log(10000.0) / head_dim)))
            angles = torch.cat((angles, angles), dim=-1)
            self.register_buffer("cosines", angles.cos())
            self.register_buffer("sines", angles.sin())
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    nn.init.normal_(parameter, std=0.02)

        def forward(self, tokens):
            x = self.embedding(tokens)
            for block in self.blocks:
                x = block(x, self.cosines, self.sines)
            return self.head(self.norm(x))

    return Model()


def build(torch, arguments):
    """The model, what gives its logits, and what it is of."""
    hidden, intermediate, layers, heads = PRESETS[arguments.preset]
    try:
        import transformers
    except ImportError:
        if arguments.attention != "sdpa":
            raise
        model = own_model(torch, hidden, intermediate, layers, heads, arguments.sequence)
        return model, model, f"torch {torch.__version__}, model written out"
    config = transformers.LlamaConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, vocab_size=VOCAB_SIZE, max_position_embeddings=max(1024, arguments.sequence),
        rms_norm_eps=1e-6, tie_word_embeddings=False, use_cache=False, attn_implementation=arguments.attention)
    model = transformers.LlamaForCausalLM(config)
    name = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return model, lambda tokens: model(input_ids=tokens).logits, name


def main():
    arguments = parse()
    os.environ.setdefault("OMP_NUM_THREADS", str(arguments.threads))
    import torch

    on_gpu = arguments.device == "cuda"
    precision = arguments.precision or ("bf16" if on_gpu else "fp32")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    with contextlib.suppress(ImportError):
        import transformers  # noqa: F401: what it takes counts as imported
    imported = rss_bytes()
    model, logits_of, framework = build(torch, arguments)
    model = model.to(arguments.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def loss_of(tokens, targets):
        with torch.autocast(arguments.device, torch.bfloat16, enabled=precision == "bf16"):
            logits = logits_of(tokens)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    if arguments.compile:
        loss_of = torch.compile(loss_of)
    shape = (arguments.batch, arguments.sequence)
    seconds, loss = [], None
    for step in range(arguments.warmup + arguments.steps):
        tokens, targets = (torch.randint(VOCAB_SIZE, shape, device=arguments.device) for _ in range(2))
        if on_gpu:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        loss = loss_of(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if on_gpu:
            torch.cuda.synchronize()
        if step >= arguments.warmup:
            seconds.append(time.perf_counter() - begin)
    tokens_per_step = arguments.batch * arguments.sequence
    print(json.dumps({
        "framework": framework, "device": torch.cuda.get_device_name() if on_gpu else "cpu", "precision": precision,
        "preset": arguments.preset, "parameters": sum(p.numel() for p in model.parameters()), "batch": arguments.batch,
        "sequence_length": arguments.sequence, "threads": arguments.threads, "attention": arguments.attention,
        "compiled": arguments.compile, "steps": arguments.steps,
        "tokens_per_second": round(tokens_per_step / statistics.median(seconds), 1),
        "best_tokens_per_second": round(tokens_per_step / min(seconds), 1),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_device_bytes": torch.cuda.max_memory_allocated() if on_gpu else 0,
        "imported_rss_bytes": imported, "final_loss": round(loss.item(), 4),
    }))


if __name__ == "__main__":
    main()
