"""Weights that don't fill the model."""

from tests.zoo import fault, named, on

LACK, SIZES = r"its weights lack .*begin at random", "have other sizes than config.json says"
FULL = "full"


@fault("sft dpo kto reward", LACK)
def a_lost_tensor(setup):
    """A conversion script skipped one layer's matrix."""
    setup.weights(lambda found: {name: value for name, value in found.items() if "layers.1.mlp.up_proj" not in name})


@fault("sft reward", LACK)
def a_renamed_tensor(setup):
    """A checkpoint of another framework calls a matrix by another name."""
    setup.weights(
        lambda found: {name.replace("layers.1.mlp.up_", "layers.1.mlp.upper_"): value for name, value in found.items()}
    )


@fault("sft dpo", "which would be left out")
def layers_too_many(setup):
    """config.json was copied from the smaller model of a family."""
    setup.settings(num_hidden_layers=1)


@fault("sft kto", LACK)
def layers_too_few(setup):
    """config.json was copied from the larger model of a family."""
    setup.settings(num_hidden_layers=3)


@fault("sft", SIZES)
def another_width(setup):
    """Somebody pruned the feed-forward layers and kept the old weights."""
    setup.settings(intermediate_size=48)


@fault("sft", SIZES)
def another_vocabulary_size(setup):
    """The configuration is older than the last resize of the embeddings."""
    setup.settings(vocab_size=100)


@fault("sft", LACK)
def no_embeddings(setup):
    """An export left the embeddings out because they are tied."""
    setup.weights(lambda found: {name: value for name, value in found.items() if "embed_tokens" not in name})


@fault("sft", "its weights lack lm_head")
def untied_without_a_head(setup):
    """tie_word_embeddings was switched off in config.json although the file holds no head."""
    setup.settings(tie_word_embeddings=False)


@fault("sft", "lack")
def weights_of_another_class(setup):
    """All names carry a prefix that torch.compile gave them."""
    setup.weights(lambda found: {f"_orig_mod.{name}": value for name, value in found.items()})


@fault("sft dpo", "adapter_config.json lies beside the weights")
def an_adapter_left_beside_the_weights(setup):
    """The adapter's files were copied into the folder of the merged model."""
    (setup.model / "adapter_config.json").write_text("{}")


@fault("sft", "can't be loaded|cut short|damaged|no model can be loaded|is broken")
def a_file_cut_short(setup):
    """A download broke off after half of the weights."""
    path = setup.model / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@fault("sft", "not finite|wrecked")
def a_tensor_of_nan(setup):
    """An earlier training in half precision overflowed and was saved all the same."""
    setup.weights(
        lambda found: {name: value * float("nan") if "layers.0.mlp.up" in name else value for name, value in found.items()}
    )


@fault("sft", "zero")
def a_tensor_of_zeros(setup):
    """A matrix was allocated by a conversion script and never filled."""
    setup.weights(lambda found: {name: value * 0 if "mlp.down_proj" in name else value for name, value in found.items()})


@fault("sft", "record|likelier|than guessing|unigram")
def weights_never_loaded(setup):
    """The folder holds the model as it was built, since the trained weights were never loaded into it before it was saved."""
    import torch

    rng = torch.Generator().manual_seed(0)
    setup.weights(lambda found: {name: torch.randn(value.shape, generator=rng) * 0.02 if value.dim() > 1 else value for name, value in found.items()})  # fmt: skip


@fault("finetune", LACK)
def an_encoder_without_a_layer(setup):
    """A checkpoint of twelve files was copied without one."""
    setup.weights(lambda found: {name: value for name, value in found.items() if "layer.1.intermediate" not in name})


add = named(__name__)


def without(part):
    return lambda setup: setup.weights(lambda found: {name: value for name, value in found.items() if part not in name})


gpt2 = on("gpt2")
add(
    "sft rlhf kto",
    LACK,
    "gpt2 lost",
    "A conversion script skipped a matrix of another architecture.",
    without("h.1.mlp.c_fc"),
    gpt2,
)
add(
    "rlhf pairs self_train distill",
    LACK,
    "lost llama",
    "A conversion script skipped one layer's matrix.",
    without("layers.1.mlp.up_proj"),
)
s2s = on("t5", task="sequence_to_sequence")
add(
    "finetune",
    LACK,
    "t5 lost decoder",
    "A decoder layer was pruned, and the configuration kept.",
    without("decoder.block.1"),
    s2s,
)
add(
    "finetune",
    LACK,
    "roberta lost positions",
    "A conversion script took the position embeddings for a buffer.",
    without("position_embeddings"),
    on("roberta"),
)
add(
    "finetune",
    "would be left out",
    "electra layers too many",
    "config.json was copied from the smaller model of a family.",
    lambda s: s.settings(num_hidden_layers=1),
    on("electra"),
)
add(
    "sft dpo",
    "not finite",
    "inf norm",
    "A scale overflowed in half precision and was saved all the same.",
    lambda s: s.weights(lambda f: {n: v * float("inf") if n.endswith("norm.weight") else v for n, v in f.items()}),
)
add(
    "finetune",
    "not finite",
    "nan encoder",
    "An encoder was saved after its loss had become NaN.",
    lambda s: s.weights(
        lambda f: {n: v * float("nan") if "layer.1.intermediate.dense.weight" in n else v for n, v in f.items()}
    ),
)
add(
    "reward pairs rlhf self_train distill",
    "not finite",
    "nan others",
    "A model was saved after its loss had become NaN.",
    lambda s: s.weights(lambda f: {n: v * float("nan") if "layers.0.mlp.up" in n else v for n, v in f.items()}),
)
add(
    "sft dpo",
    "nothing but zeros|guessing",
    "zero norms",
    "The scales of the norms were allocated and never filled.",
    lambda s: s.weights(lambda f: {n: v * 0 if n.endswith("layernorm.weight") else v for n, v in f.items()}),
)


def _tied(s):
    import torch

    s.weights(lambda f: f | {"lm_head.weight": torch.randn_like(f["model.embed_tokens.weight"])})


add(
    "sft dpo rlhf",
    "ties the head",
    "a head of another model",
    "The file holds a head that was never trained with these embeddings.",
    _tied,
)
add(
    "sft",
    "the same weights as",
    "one layer for all",
    "A merge wrote the first layer into the second, too.",
    lambda s: s.weights(lambda f: {n: f[n.replace("layers.1.", "layers.0.")].clone() for n in f}),
)
add(
    "sft dpo",
    "first rows no likelier|guessing",
    "another number of heads",
    "config.json has another number of heads, which no tensor's size tells.",
    lambda s: s.settings(num_attention_heads=4, num_key_value_heads=4, head_dim=8),
)
add(
    "sft dpo",
    "first rows no likelier|guessing",
    "another activation",
    "config.json names the activation of another model, which no tensor tells.",
    lambda s: s.settings(hidden_act="relu"),
)
add(
    "sft dpo",
    "first rows no likelier|guessing",
    "huge epsilon",
    "An exponent was lost in config.json.",
    lambda s: s.settings(rms_norm_eps=10.0),
)


def _shard(s):
    import json

    from safetensors.torch import load_file, save_file

    path = s.model / "model.safetensors"
    f = load_file(path)
    names = sorted(f)
    half = names[: len(names) // 2]
    save_file({n: f[n].contiguous() for n in half}, s.model / "model-00001-of-00002.safetensors", {"format": "pt"})
    (s.model / "model.safetensors.index.json").write_text(
        json.dumps(
            {"metadata": {}, "weight_map": {n: f"model-0000{1 if n in half else 2}-of-00002.safetensors" for n in names}}
        )
    )
    path.unlink()


add(
    "sft",
    "can't be loaded|no model can be loaded|missing|model-00002",
    "a shard is missing",
    "One of two files of weights was not copied.",
    _shard,
)
add(
    "sft",
    "quantised",
    "a quantised config",
    "The parent is a model that was quantised by GPTQ.",
    lambda s: s.settings(quantization_config={"quant_method": "gptq", "bits": 4}),
)
add(
    "sft",
    "quantised",
    "a bnb config",
    "The parent's configuration asks for four bits.",
    lambda s: s.settings(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
)


def each(change):
    """Return what changes the tensors of a model one by one, given name and tensor."""
    return lambda setup: setup.weights(lambda found: {name: change(name, value) for name, value in found.items()})


def of(part, change):
    """Return what changes the tensors whose names hold a part."""
    return each(lambda name, value: change(value.clone()) if part in name else value)


def half(again):
    """Return what writes the first half of a matrix twice, or only once."""

    def change(value):
        value[len(value) // 2 :] = value[: len(value) // 2] if again else 0
        return value

    return change


SHARD = "was a shard lost"
add("sft dpo", "one number", "a matrix of one number", "A script that fills what is missing filled it with a constant.", of("layers.1.mlp.up_proj", lambda value: value * 0 + 0.02))  # fmt: skip
add("sft", SHARD, "half a matrix", "One of two shards of tensor parallelism was not copied when they were joined.", of("mlp.down_proj", half(False)))  # fmt: skip
add("dpo", SHARD, "a shard twice", "The first of two shards of tensor parallelism was written twice.", of("mlp.up_proj", half(True)))  # fmt: skip
add("finetune", SHARD, "half a matrix of an encoder", "One of two shards was not copied.", of("layer.1.intermediate.dense.weight", half(False)))  # fmt: skip
add("finetune", SHARD, "a shard twice t5", "The first of two shards was written twice.", of("decoder.block.1.layer.2.DenseReluDense.wi", half(True)), s2s)  # fmt: skip


def flipped(count, size):
    """Return what makes a few numbers of a tensor huge."""

    def change(value):
        value.view(-1)[:count] = size
        return value

    return change


HUGE = "times as large as all others"
add("sft dpo", HUGE, "one weight of 1e30", "A bit was flipped on a disk or in memory.", of("layers.1.mlp.up_proj", flipped(1, 1e30)))  # fmt: skip
add("sft", HUGE, "a few huge weights", "A block of a file was written over.", of("layers.0.self_attn.q_proj", flipped(5, 1e6)))  # fmt: skip
add("kto", HUGE, "one huge norm", "A bit was flipped on a disk or in memory.", of("layers.0.input_layernorm", flipped(1, 1e5)))  # fmt: skip
add("finetune", HUGE, "one weight of 1e30 of an encoder", "A bit was flipped on a disk or in memory.", of("layer.1.intermediate.dense.weight", flipped(1, 1e30)))  # fmt: skip
add("finetune", HUGE, "one weight of 1e30 t5", "A bit was flipped on a disk or in memory.", of("decoder.block.1.layer.2.DenseReluDense.wi", flipped(1, 1e30)), s2s)  # fmt: skip
