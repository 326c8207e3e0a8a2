"""Parents and resumes that are not what they were."""

import os

from tests.zoo import fault, named
from tests.zoo.faults.templates import CHATML


@fault("dpo kto", "base model|never taught|chat template|conversations", parent="pretrain")
def alignment_from_the_base(setup):
    """The path of the base was typed, with a template beside it since it has none."""
    setup.template = CHATML
    setup.record = True


@fault("dpo kto", "chat_template|another template", parent="sft")
def another_template_than_the_parents(setup):
    """The profile of another model brings its template along."""
    setup.template = CHATML.replace("<|im_start|>' + message['role'] + '\\n'", "### ' + message['role'] + ':\\n'").replace("<|im_start|>assistant\\n", "### assistant:\\n")  # fmt: skip
    setup.record = True


@fault("dpo", "is not the file that was made", plain=False)
def a_parent_edited_in_place(setup):
    """A file of the finished parent was overwritten."""
    setup.record = True
    setup.weights(lambda found: {name: value * 1.01 for name, value in found.items()})


@fault("sft", r"changed|differs|began|again\b", plain=False)
def a_parent_edited_with_its_old_times(setup):
    """rsync keeps times, and a tool that patches a file in place keeps its size."""
    setup.record = True

    def later(one):
        path = one.model / "model.safetensors"
        before = path.stat()
        found = bytearray(path.read_bytes())
        found[-4:] = b"\x00\x00\x80\x3f"
        with path.open("r+b") as file:
            file.write(found)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    setup.later = later


@fault("sft", r"changed|again\b|differs|other inputs|aside", plain=False)
def rows_edited_after_the_stage(setup):
    """The file of rows was corrected after the stage was done, and the result kept."""

    def later(one):
        one.rows = [row for at, row in enumerate(one.rows) if at % 2]
        assert one.data.exists()

    setup.later = later


@fault("sft", "no such|does not exist|not found|can't be|no model|config.json")
def a_parent_without_a_configuration(setup):
    """Only the weights were copied."""
    (setup.model / "config.json").unlink()


@fault("sft", "auto_map|remote code|trust_remote_code|own code")
def a_parent_with_code_of_its_own(setup):
    """A model from the hub wants its own Python file to run."""
    setup.settings(auto_map={"AutoModelForCausalLM": "modeling_x.X", "AutoConfig": "modeling_x.C"}, model_type="xyz")


@fault("sft", "family|encoder|causal", parent="encoder")
def a_parent_of_another_family(setup):
    """An encoder where a language model is needed."""
    setup.template = CHATML


@fault("sft", "safetensors|pickle|pytorch_model")
def a_parent_in_pickle(setup):
    """An old checkpoint holds pytorch_model.bin alone."""
    import torch
    from safetensors.torch import load_file

    path = setup.model / "model.safetensors"
    torch.save(load_file(path), setup.model / "pytorch_model.bin")
    path.unlink()


add = named(__name__)


def base(setup):
    """Train on a base, with its record and with a template beside it."""
    setup.parent, setup.record, setup.template = "pretrain", True, CHATML


add(
    "rlhf self_train",
    "never taught",
    "from the base",
    "The path of the base was typed, with a template beside it since it has none.",
    base,
)
add(
    "dpo rlhf", "family", "an encoder as parent", "The path of an encoder was typed.", lambda s: setattr(s, "parent", "encoder")
)


def adapter_alone(setup):
    """Leave the files of an adapter alone."""
    for name in ("model.safetensors", "config.json"):
        (setup.model / name).unlink()
    (setup.model / "adapter_config.json").write_text('{"base_model_name_or_path": "a/b"}')


add("sft", "no model folder", "an adapter alone", "The folder holds an adapter without its model.", adapter_alone)
