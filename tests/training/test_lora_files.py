"""Adapters as peft's files: peft reads ours, we read peft's, and what is no adapter is refused."""

from __future__ import annotations

import json

import pytest
import torch

import qlab
from qlab.training.lora import add_lora, lora_layers
from qlab.training.lora_files import CONFIG, WEIGHTS, load_adapter, save_adapter
from tests.training.lora_cases import batch, fill, llama


@pytest.mark.engine("export lora", "peft")
@pytest.mark.parametrize("targets", [None, ("q_proj", "v_proj"), ("1.mlp.up_proj",)])
def test_peft_reads_ours(tmp_path, targets):
    from peft import PeftModel

    lora = fill(add_lora(llama(), 4, 8, targets, dropout=0.1))
    save_adapter(lora, tmp_path / "a", base="some/model")
    theirs = PeftModel.from_pretrained(llama(), tmp_path / "a").eval()
    ids = batch(0)
    assert torch.equal(lora(ids).logits, theirs(input_ids=ids).logits)
    state = {k for k in theirs.state_dict() if ".lora_A." in k}
    assert len(state) == len(list(lora_layers(lora)))
    config = theirs.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 8, 0.1)
    assert config.base_model_name_or_path == "some/model"


def test_we_read_pefts(tmp_path):
    from peft import LoraConfig, get_peft_model

    theirs = get_peft_model(
        llama(), LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"])
    ).eval()
    for name, p in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05)
    theirs.save_pretrained(tmp_path / "a")
    ours, ids = load_adapter(llama(), tmp_path / "a"), batch(0)
    assert torch.equal(ours(ids).logits, theirs(input_ids=ids).logits)
    assert len(list(lora_layers(ours))) == 4


def test_there_and_back_on_a_quantized_base(tmp_path):
    base, _ = qlab.quantize_model(llama(), "nf4", "nf4-g64")
    lora = fill(add_lora(base, 3, 5))
    save_adapter(lora, tmp_path / "a")
    back = load_adapter(base, tmp_path / "a")
    assert torch.equal(lora(batch(1)).logits, back(batch(1)).logits)
    assert {n for n, p in back.named_parameters() if p.requires_grad} == {
        n for n, p in lora.named_parameters() if p.requires_grad
    }
    with pytest.raises(qlab.QlabError, match="exists already"):
        save_adapter(lora, tmp_path / "a")
    save_adapter(lora, tmp_path / "a", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_what_is_refused(tmp_path):
    model = llama()
    with pytest.raises(qlab.QlabError, match="no LoRA adapters to save"):
        save_adapter(model, tmp_path / "none")
    lora = fill(add_lora(model, 4))
    save_adapter(lora, tmp_path / "a")
    config = json.loads((tmp_path / "a" / CONFIG).read_text())

    def broken(name, **change):
        save_adapter(lora, tmp_path / name)
        (tmp_path / name / CONFIG).write_text(json.dumps({**config, **change}))
        return tmp_path / name

    for folder, message in (
        (tmp_path / "nowhere", f"lacks {WEIGHTS}"),
        (broken("dora", use_dora=True), "use_dora=True"),
        (broken("ia3", peft_type="IA3"), "holds IA3"),
        (broken("rank", r=3), "the adapter is for another model"),
        (broken("none", r=None), "cannot be read"),
    ):
        with pytest.raises(qlab.QlabError, match=message):
            load_adapter(model, folder)
    (tmp_path / "a" / CONFIG).write_text("{")
    with pytest.raises(qlab.QlabError, match="cannot be read"):
        load_adapter(model, tmp_path / "a")
    with pytest.raises(qlab.QlabError, match="already"):
        load_adapter(lora, broken("twice"))
    with pytest.raises(qlab.QlabError, match="no layer 'model"):
        load_adapter(torch.nn.Linear(2, 2), broken("other"))
    with torch.no_grad():
        next(lora_layers(lora))[1].lora_A[0, 0] = float("inf")
    with pytest.raises(qlab.QlabError, match=r"lora_A of layer .* infinity"):
        save_adapter(lora, tmp_path / "inf")
    assert not (tmp_path / "inf").exists()
