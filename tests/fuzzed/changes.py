"""Files that change a model: a UNet alone, LoRAs, also with peft's settings, embeddings, a text encoder."""

import json
from functools import cache
from pathlib import Path

import torch
from fuzz import Kind
from safetensors.torch import save_file
from torch import nn

from sld.checkpoints.changes import Changes
from sld.checkpoints.changes.opening import open_changes
from sld.checkpoints.parts import parts
from sld.config import Defaults, ModelConfig, ScheduleConfig, TextConfig, UNetConfig, VAEConfig
from sld.models.text import TextEncoder
from sld.models.unet import UNet

CONFIG = ModelConfig(
    "tiny",
    UNetConfig((8, 8), 1, (True, False), (2, 2), (1, 1), 8, linear_projection=False, groups=4),
    VAEConfig((8, 8), 1, scaling=0.5, groups=4),
    (TextConfig(width=8, layers=1, heads=2, hidden=16, tokens=8, vocabulary=20),),
    ScheduleConfig(),
    Defaults(size=16),
)
LAYER = "mid_block.attentions.0.proj_in"
SETTINGS = {"r": 2, "lora_alpha": 1.5, "alpha_pattern": {"proj_in": 2}, "use_rslora": True, "use_dora": False}


@cache
def networks() -> dict[str, nn.Module]:
    """What is changed, once more with every file."""
    return {"unet": UNet(CONFIG.unet), "text": TextEncoder(CONFIG.texts[0])}


def prepare(folder: Path) -> None:
    torch.manual_seed(0)
    down, up = torch.randn(2, 8, 1, 1), torch.randn(8, 2, 1, 1)
    stem = f"lora_unet_{LAYER.replace('.', '_')}"
    kohya = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(1.0)}
    save_file(kohya, folder / "lora.safetensors")
    torch.save(kohya, folder / "lora.pt")
    peft = {f"base_model.model.{LAYER}.lora_A.weight": down, f"base_model.model.{LAYER}.lora_B.weight": up}
    save_file(peft, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS))
    save_file({"<cat>": torch.randn(2, 8)}, folder / "embedding.safetensors")
    webui = {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.randn(2, 8)}, "name": "cat"}
    torch.save(webui, folder / "embedding.pt")
    unet = parts(CONFIG)[0]
    state = networks()["unet"].state_dict()
    some = {m.theirs[0]: m.write(state) for m in unet.key_maps("diffusers") if "attn2.to_" in m.theirs[0]}
    save_file(some, folder / "unet.safetensors")
    names = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    names |= {"max_position_embeddings": 8, "vocab_size": 20}
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "text_config": names}))
    text = parts(CONFIG)[2]
    state = networks()["text"].state_dict()
    save_file({m.theirs[0]: m.write(state) for m in text.key_maps("diffusers")}, folder / "model.safetensors")


def read(path: Path) -> None:
    """Open the file as what its name says, match it to the model, and make the change."""
    kind = path.stem.split("_")[0]
    given: dict[str, object] = {kind: str(path)}
    if kind == "adapter":
        given = {"lora": str(path.with_name("adapter_model.safetensors"))}
    elif kind in ("config", "model"):
        given = {"text_encoder": path.parent}
    open_changes(Changes.of(given)).match(parts(CONFIG)).make(networks())


KIND = Kind(prepare, read, tries=60, same_file=False)
