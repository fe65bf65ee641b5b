"""Tiny models of architectures that no small real file is had of, with random weights and SmolLM2's vocabulary. What they
write is nonsense, but it is the same nonsense wherever it is computed. usage: synthetic_models.py VOCABULARY.gguf FOLDER"""
import pathlib
import re
import sys

import gguf
import numpy

WIDTH, HEADS, FEED, LAYERS = 64, 4, 128, 6
MATRIX = gguf.GGMLQuantizationType.F16


class Model:
    """A file to be: layers are numbered by the caller, dimensions are in ggml's order (the innermost first)."""

    def __init__(self, arch: str, vocabulary: gguf.GGUFReader, seed: int):
        self.arch, self.random, self.tensors = arch, numpy.random.default_rng(seed), {}
        self.keys = [("general.architecture", arch, gguf.GGUFValueType.STRING, None)]
        for name, field in vocabulary.fields.items():
            if name.startswith("tokenizer.") and "chat_template" not in name:
                sub_type = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
                self.keys.append((name, field.contents(), field.types[0], sub_type))
        self.vocabulary_size = len(vocabulary.fields["tokenizer.ggml.tokens"].contents())
        self.numbers(block_count=LAYERS, context_length=2048, embedding_length=WIDTH, feed_forward_length=FEED)
        self.floats(attention__layer_norm_rms_epsilon=1e-5)

    def _keys(self, value_type, keys):
        for name, value in keys.items():
            self.keys.append((f"{self.arch}.{name.replace('__', '.')}", value, value_type, None))

    def numbers(self, **keys):
        self._keys(gguf.GGUFValueType.UINT32, keys)

    def floats(self, **keys):
        self._keys(gguf.GGUFValueType.FLOAT32, keys)

    def matrix(self, name: str, *ne: int, type=None, scale=1.0):
        values = self.random.normal(0, scale / numpy.sqrt(ne[0]), tuple(reversed(ne))).astype(numpy.float32)
        self.tensors[f"{name}.weight"] = (values, MATRIX if type is None else type)

    def plain(self, name: str, values):
        self.tensors[name] = (numpy.ascontiguousarray(values, dtype=numpy.float32), gguf.GGMLQuantizationType.F32)

    def norm(self, name: str, size: int):
        self.plain(f"{name}.weight", self.random.uniform(0.5, 1.5, size))

    def ends(self, tied=False):
        self.matrix("token_embd", WIDTH, self.vocabulary_size)
        self.norm("output_norm", WIDTH)
        if not tied:
            self.matrix("output", WIDTH, self.vocabulary_size)

    def attention(self, block: str, kv_heads: int):
        self.matrix(f"{block}.attn_q", WIDTH, WIDTH)
        self.matrix(f"{block}.attn_k", WIDTH, WIDTH // HEADS * kv_heads)
        self.matrix(f"{block}.attn_v", WIDTH, WIDTH // HEADS * kv_heads)
        self.matrix(f"{block}.attn_output", WIDTH, WIDTH)

    def feed(self, block: str):
        for name, ne in (("gate", (WIDTH, FEED)), ("up", (WIDTH, FEED)), ("down", (FEED, WIDTH))):
            self.matrix(f"{block}.ffn_{name}", *ne)

    def experts(self, block: str, count: int, type=None):
        self.matrix(f"{block}.ffn_gate_inp", WIDTH, count, type=gguf.GGMLQuantizationType.F32)
        for name, ne in (("gate", (WIDTH, FEED)), ("up", (WIDTH, FEED)), ("down", (FEED, WIDTH))):
            self.matrix(f"{block}.ffn_{name}_exps", *ne, count, type=type)

    def mamba(self, block: str, inner: int, state: int, rank: int, inner_norms: bool):
        self.matrix(f"{block}.ssm_in", WIDTH, 2 * inner)
        self.matrix(f"{block}.ssm_conv1d", 4, inner, type=gguf.GGMLQuantizationType.F32)
        self.plain(f"{block}.ssm_conv1d.bias", self.random.normal(0, 0.1, inner))
        self.matrix(f"{block}.ssm_x", inner, rank + 2 * state)
        self.matrix(f"{block}.ssm_dt", rank, inner)
        self.plain(f"{block}.ssm_dt.bias", self.random.uniform(-2, 1, inner))
        self.plain(f"{block}.ssm_a", -numpy.tile(numpy.arange(1, state + 1), (inner, 1)) / 4)
        self.plain(f"{block}.ssm_d", self.random.uniform(0.5, 1.5, inner))
        self.matrix(f"{block}.ssm_out", inner, WIDTH)
        for name, size in (("dt", rank), ("b", state), ("c", state)) if inner_norms else ():
            self.norm(f"{block}.ssm_{name}_norm", size)

    def mamba_numbers(self, inner: int, state: int, rank: int):
        self.numbers(ssm__conv_kernel=4, ssm__inner_size=inner, ssm__state_size=state, ssm__time_step_rank=rank)

    def write(self, file: pathlib.Path):
        writer = gguf.GGUFWriter(file, self.arch)
        for name, value, value_type, sub_type in self.keys[1:]:
            writer.add_key_value(name, value, value_type, sub_type)
        for name, (values, quantization) in self.tensors.items():
            data = gguf.quants.quantize(values, quantization)
            writer.add_tensor(name, data, raw_dtype=quantization)
        finish(writer)


def finish(writer: gguf.GGUFWriter):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def moe(vocabulary) -> Model:
    """Every token by two of four experts, as in Mixtral; the experts in a type that executors repack."""
    model = Model("llama", vocabulary, 1)
    model.numbers(attention__head_count=HEADS, attention__head_count_kv=2, expert_count=4, expert_used_count=2,
                  rope__dimension_count=WIDTH // HEADS)
    model.ends()
    for i in range(LAYERS):
        model.norm(f"blk.{i}.attn_norm", WIDTH)
        model.attention(f"blk.{i}", 2)
        model.norm(f"blk.{i}.ffn_norm", WIDTH)
        model.experts(f"blk.{i}", 4, gguf.GGMLQuantizationType.Q4_0)
    return model


def recurrent(vocabulary) -> Model:
    model = Model("mamba", vocabulary, 2)
    model.mamba_numbers(2 * WIDTH, 16, 8)
    model.ends()
    for i in range(LAYERS):
        model.norm(f"blk.{i}.attn_norm", WIDTH)
        model.mamba(f"blk.{i}", 2 * WIDTH, 16, 8, inner_norms=False)
    return model


def hybrid(vocabulary) -> Model:
    """Jamba: recurrent layers, one in three with attention, every other one with experts."""
    model = Model("jamba", vocabulary, 3)
    model.mamba_numbers(2 * WIDTH, 16, 8)
    model.numbers(attention__head_count=HEADS, expert_count=4, expert_used_count=2)
    kv_heads = [2 if i % 3 == 1 else 0 for i in range(LAYERS)]
    model.keys.append(("jamba.attention.head_count_kv", kv_heads, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32))
    model.ends()
    for i in range(LAYERS):
        model.norm(f"blk.{i}.attn_norm", WIDTH)
        if kv_heads[i]:
            model.attention(f"blk.{i}", kv_heads[i])
        else:
            model.mamba(f"blk.{i}", 2 * WIDTH, 16, 8, inner_norms=True)
        model.norm(f"blk.{i}.ffn_norm", WIDTH)
        model.experts(f"blk.{i}", 4) if i % 2 else model.feed(f"blk.{i}")
    return model


def sliding(vocabulary) -> Model:
    """Gemma 2: every other layer sees the last 32 tokens only."""
    model = Model("gemma2", vocabulary, 4)
    model.numbers(attention__head_count=HEADS, attention__head_count_kv=2, attention__key_length=WIDTH // HEADS,
                  attention__value_length=WIDTH // HEADS, attention__sliding_window=32)
    model.floats(attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
    model.ends(tied=True)
    for i in range(LAYERS):
        for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            model.norm(f"blk.{i}.{name}", WIDTH)
        model.attention(f"blk.{i}", 2)
        model.feed(f"blk.{i}")
    return model


KINDS = {"moe": moe, "recurrent": recurrent, "hybrid": hybrid, "sliding": sliding}


def write_lora(base: pathlib.Path, file: pathlib.Path, seed=0, rank=8) -> None:
    """An adapter for all matrices of a model's blocks, strong enough to change what it says."""
    random = numpy.random.default_rng(seed)
    reader = gguf.GGUFReader(base)
    writer = gguf.GGUFWriter(file, reader.fields["general.architecture"].contents())
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", rank)
    for tensor in reader.tensors:
        if not re.fullmatch(r"blk\.\d+\.(attn_(q|k|v|output)|ffn_(gate|up|down)(_exps)?|ssm_(in|x|out))\.weight", tensor.name):
            continue
        inputs, outputs, *experts = (int(n) for n in tensor.shape)
        a = random.normal(0, 1 / numpy.sqrt(inputs), (*experts, rank, inputs))
        b = random.normal(0, 0.1, (*experts, outputs, rank))
        writer.add_tensor(f"{tensor.name}.lora_a", a.astype(numpy.float16))
        writer.add_tensor(f"{tensor.name}.lora_b", b.astype(numpy.float16))
    finish(writer)


def write_control_vector(base: pathlib.Path, file: pathlib.Path) -> None:
    random = numpy.random.default_rng(0)
    fields = gguf.GGUFReader(base).fields
    arch = fields["general.architecture"].contents()
    width, layers = (fields[f"{arch}.{name}"].contents() for name in ("embedding_length", "block_count"))
    writer = gguf.GGUFWriter(file, "controlvector")
    for layer in range(1, layers):
        writer.add_tensor(f"direction.{layer}", random.normal(0, 0.3, width).astype(numpy.float32))
    finish(writer)


def write_all(vocabulary_file: pathlib.Path, folder: pathlib.Path) -> None:
    vocabulary = gguf.GGUFReader(vocabulary_file)
    for name, make in KINDS.items():
        make(vocabulary).write(folder / f"{name}.gguf")


if __name__ == "__main__":
    write_all(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
