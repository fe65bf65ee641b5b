#!/usr/bin/env python3
"""Converts the MiniLM sentence-embedding model from safetensors to GGUF, without torch.

usage: minilm_to_gguf.py MODEL_DIR OUT.gguf [--type f32|f16|q8_0]

MODEL_DIR is a sentence-transformers folder of a BERT model: config.json, tokenizer.json (WordPiece),
1_Pooling/config.json and model.safetensors (scripts/fetch.py models puts MiniLM into models/minilm of the cache).
Needs the Python packages numpy, safetensors and gguf. Equal input gives an equal file.
"""
import argparse
import json
import os
import pathlib

import gguf
import numpy as np
from safetensors.numpy import load_file

FILE_TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
WORD_START = "\u2581"  # how llama.cpp's WordPiece marks the start of a word, where BERT marks what goes on with "##"


def fail(message: str) -> None:
    raise SystemExit(f"minilm_to_gguf: {message}")


def read_json(path: pathlib.Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        fail(f"{path}: {e}")


def add_hyperparameters(writer: gguf.GGUFWriter, config: dict, pooling: dict) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_token_type_count(config["type_vocab_size"])
    mean = pooling["pooling_mode_mean_tokens"]
    writer.add_pooling_type(gguf.PoolingType.MEAN if mean else gguf.PoolingType.CLS)


def add_vocabulary(writer: gguf.GGUFWriter, config: dict, tokenizer: dict) -> None:
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    tokens = [f"[PAD{i}]" for i in range(config["vocab_size"])]
    types = [gguf.TokenType.UNUSED] * len(tokens)
    for text, token in tokenizer["model"]["vocab"].items():
        if special.get(text) == token:
            tokens[token], types[token] = text, gguf.TokenType.CONTROL
        else:
            tokens[token] = text[2:] if text.startswith("##") else WORD_START + text
            types[token] = gguf.TokenType.NORMAL
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_bos_token_id(special["[CLS]"])
    writer.add_unk_token_id(special["[UNK]"])
    writer.add_sep_token_id(special["[SEP]"])
    writer.add_pad_token_id(special["[PAD]"])
    writer.add_mask_token_id(special["[MASK]"])


def add_tensors(writer: gguf.GGUFWriter, config: dict, weights: dict, weight_type: gguf.GGMLQuantizationType) -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
    for source, tensor in weights.items():
        if source == "embeddings.position_ids" or source.startswith("pooler."):
            continue  # a table of 0, 1, 2, …; the pooler is not used for sentence embeddings
        name = names.get_name(source.removeprefix("bert."), try_suffixes=(".weight", ".bias"))
        if name is None:
            fail(f"no GGUF name is known for the tensor {source}")
        tensor = tensor.astype(np.float32)
        # What is added instead of multiplied stays F32: vectors, position and token-type embeddings.
        added = tensor.ndim == 1 or name.startswith(("position_embd", "token_types"))
        if added or weight_type == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, tensor)
        elif weight_type == gguf.GGMLQuantizationType.F16:
            writer.add_tensor(name, tensor.astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(tensor, weight_type), raw_dtype=weight_type)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--type", default="f16", choices=FILE_TYPES)
    args = parser.parse_args()

    config = read_json(args.model_dir / "config.json")
    tokenizer = read_json(args.model_dir / "tokenizer.json")
    if config["model_type"] != "bert" or config["hidden_act"] not in ("gelu", "gelu_new"):
        fail(f"{args.model_dir} is no BERT model with GELU, which is all that this script converts")
    if tokenizer["model"]["type"] != "WordPiece":
        fail(f"the tokenizer is {tokenizer['model']['type']}; only WordPiece is converted")
    weight_type, file_type = FILE_TYPES[args.type]

    part = args.out.with_name(args.out.name + ".part")  # a cut run leaves no file under the final name
    writer = gguf.GGUFWriter(part, "bert")
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_license("apache-2.0")
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_hyperparameters(writer, config, read_json(args.model_dir / "1_Pooling/config.json"))
    add_vocabulary(writer, config, tokenizer)
    add_tensors(writer, config, load_file(args.model_dir / "model.safetensors"), weight_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(part, args.out)


if __name__ == "__main__":
    main()
