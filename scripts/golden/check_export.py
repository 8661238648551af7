#!/usr/bin/env python3
"""Loads a folder written by `chaski export` in transformers and prints what it says about a text, to be
held against `chaski eval` and `chaski generate`.

    check_export.py DIR --text "In the beginning"      logits of the last token; greedy continuation, as
                                                       `chaski generate --temperature 0`
    check_export.py DIR --data FILE.h5                 loss, perplexity and bits per byte as `chaski eval`
                                                       (validation part where the file has one)
    check_export.py DIR --json …                       one object on stdout

Needs scripts/golden/requirements.txt.
"""

import argparse
import json
import math
import pathlib

import h5py
import numpy
import sentencepiece
import torch
import transformers


def load(folder):
    """Strict: a missing, surplus or misshapen tensor is an error, not a random weight."""
    model, info = transformers.LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info.get(problem):
            raise SystemExit(f"{folder}: {problem}: {list(info[problem])}")
    return model.eval()


def describe(model):
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {"rope_theta": getattr(config, "rope_theta", None)}
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "hidden_size": config.hidden_size, "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads, "num_key_value_heads": config.num_key_value_heads,
        "vocab_size": config.vocab_size, "tie_word_embeddings": config.tie_word_embeddings,
        "rope_theta": rope["rope_theta"], "rms_norm_eps": config.rms_norm_eps,
    }


@torch.no_grad()
def on_text(model, processor, text, count):
    # As `chaski generate` does: a document begins after the end of another.
    tokens = ([processor.eos_id()] if processor.eos_id() >= 0 else []) + processor.encode(text)
    prompt = len(tokens)
    logits = model(input_ids=torch.tensor([tokens])).logits[0]
    top = torch.topk(logits[-1], 5)
    for _ in range(count):
        tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    return {
        "prompt_tokens": tokens[:prompt],
        "top_logits": [[int(i), processor.id_to_piece(int(i)), round(float(v), 5)] for v, i in zip(top.values, top.indices)],
        "greedy": processor.decode(tokens[prompt:]),
    }


def read_tokens(path, part):
    """Tokens and bytes of text of a part of a token file; docs/formats.md describes it."""
    with h5py.File(path, "r") as file:
        group = file["validation"] if part == "validation" and "validation" in file else file
        tokens = group["tokens"]
        return tokens[:].astype(numpy.int64), int(tokens.attrs["byte_count"])


@torch.no_grad()
def on_data(model, path, part, length, limit):
    tokens, num_bytes = read_tokens(path, part)
    bytes_per_token = num_bytes / len(tokens)
    if limit:
        tokens = tokens[: limit + 1]
    total, count = 0.0, 0
    for begin in range(0, len(tokens) - 1, length):
        inputs = torch.from_numpy(tokens[begin : begin + length])
        targets = torch.from_numpy(tokens[begin + 1 : begin + length + 1])
        logits = model(input_ids=inputs[None, : len(targets)]).logits[0]
        total += torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum").item()
        count += len(targets)
    return {"tokens": count, "loss": total / count, "perplexity": math.exp(total / count),
            "bits_per_byte": total / count / math.log(2) / bytes_per_token}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="with model.safetensors, config.json, tokenizer.model")
    parser.add_argument("--text", help="a prompt")
    parser.add_argument("--generate", type=int, default=20, help="tokens to continue the prompt by, greedily")
    parser.add_argument("--data", type=pathlib.Path, help="a token file of `chaski tokenize`")
    parser.add_argument("--part", default="validation", help="of the token file: validation or train")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--limit", type=int, default=0, help="evaluate only that many tokens; 0: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.set_verbosity_error()

    model = load(arguments.folder)
    result = {"model": describe(model)}
    if arguments.text is not None:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(arguments.folder / "tokenizer.model"))
        result["text"] = on_text(model, processor, arguments.text, arguments.generate)
    if arguments.data is not None:
        result["data"] = on_data(model, arguments.data, arguments.part, arguments.sequence_length, arguments.limit)
    if arguments.json:
        print(json.dumps(result))
        return
    for title, values in result.items():
        print(title)
        for key, value in values.items():
            print(f"  {key}: {value}")


if __name__ == "__main__":
    main()
