"""What is trained in bf16 is merged, handed on and loaded in fp32."""

import pytest
import torch
from safetensors.torch import load_file

from pipeline.chain import manifest
from tests.conftest import flags_of


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_an_adapter_that_was_trained_in_bf16_is_merged_in_fp32(run, chain, data, tmp_path, name):
    """Autocast stays around a model's forward after training; a merge compared under it differs by its rounding."""
    status, _, err = run(name, *flags_of(name, chain, data, tmp_path / "out"), "--bf16", "true")
    assert status == 0, err
    assert manifest.read(tmp_path / "out")["merge_error"] < 1e-4
    assert {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float32}
