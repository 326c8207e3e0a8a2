"""Weights that don't fill the model."""

from tests.zoo import fault

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
