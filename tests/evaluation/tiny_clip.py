"""A whole CLIP with random weights and the embedded model's tokenizer, in transformers' format."""

import json
import shutil
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel

from sld.embedded import embedded_checkpoint
from sld.published import MINI

SIZE = 28
WIDTH = 12


def whole_clip(folder: Path, eos: int = MINI.texts[0].vocabulary - 1) -> CLIPModel:
    """Write the model to `folder`; its config names `eos` as the end token, which transformers then believes."""
    torch.manual_seed(3)
    sizes = {"intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1}
    tokens = {"bos_token_id": MINI.texts[0].vocabulary - 2, "eos_token_id": eos}
    model = CLIPModel(
        CLIPConfig(
            text_config={
                **sizes,
                **tokens,
                "hidden_size": 8,
                "vocab_size": MINI.texts[0].vocabulary,
                "max_position_embeddings": 9,
            },
            vision_config={**sizes, "hidden_size": 16, "image_size": SIZE, "patch_size": 14},
            projection_dim=WIDTH,
        )
    ).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    for path in embedded_checkpoint().with_name("tokenizer").iterdir():
        shutil.copy(path, folder)
    assert json.loads((folder / "config.json").read_text())["text_config"]["eos_token_id"] == eos
    return model
