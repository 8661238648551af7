#!/usr/bin/env python3
"""Training speed and memory of PyTorch on the same shapes, to hold `chaski bench train` against: LLaMA of
transformers, fp32, fused AdamW, random tokens.

    pytorch_baseline.py --preset llama-60m --batch 8 --sequence 256 --threads 2 [--compile]

Prints one JSON object: tokens_per_second is the median of the measured steps, peak_rss_bytes is the
process's (interpreter and libraries included; imported_rss_bytes is what they take before the model exists).
Needs scripts/golden/requirements.txt; --compile also needs g++.
"""

import argparse
import json
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


def main():
    arguments = parse()
    os.environ.setdefault("OMP_NUM_THREADS", str(arguments.threads))
    import torch
    import transformers

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    imported = rss_bytes()
    hidden, intermediate, layers, heads = PRESETS[arguments.preset]
    config = transformers.LlamaConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, vocab_size=VOCAB_SIZE, max_position_embeddings=max(1024, arguments.sequence),
        rms_norm_eps=1e-6, tie_word_embeddings=False, use_cache=False, attn_implementation=arguments.attention)
    model = transformers.LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def loss_of(tokens, targets):
        logits = model(input_ids=tokens).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    if arguments.compile:
        loss_of = torch.compile(loss_of)
    shape = (arguments.batch, arguments.sequence)
    seconds, loss = [], None
    for step in range(arguments.warmup + arguments.steps):
        tokens, targets = torch.randint(VOCAB_SIZE, shape), torch.randint(VOCAB_SIZE, shape)
        begin = time.perf_counter()
        loss = loss_of(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step >= arguments.warmup:
            seconds.append(time.perf_counter() - begin)
    tokens_per_step = arguments.batch * arguments.sequence
    print(json.dumps({
        "framework": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "preset": arguments.preset, "parameters": model.num_parameters(), "batch": arguments.batch,
        "sequence_length": arguments.sequence, "threads": arguments.threads, "attention": arguments.attention,
        "compiled": arguments.compile, "steps": arguments.steps,
        "tokens_per_second": round(tokens_per_step / statistics.median(seconds), 1),
        "best_tokens_per_second": round(tokens_per_step / min(seconds), 1),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "imported_rss_bytes": imported, "final_loss": round(loss.item(), 4),
    }))


if __name__ == "__main__":
    main()
