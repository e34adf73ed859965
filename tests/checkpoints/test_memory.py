import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sld.checkpoints.parts import parts
from sld.models.text import TextEncoder
from sld.models.unet import UNet
from sld.models.vae import VAE
from sld.published import SD15

LOAD = """
import sys
from pathlib import Path
import torch
from sld.checkpoints import load

def resident(field):
    return int(Path("/proc/self/status").read_text().split(field)[1].split()[0]) * 1024

for dtype in (None, torch.float32):  # the smaller first: the peak is that of the process so far
    before = resident("VmRSS:")
    parts = load(sys.argv[1], dtype=dtype)
    parameters = [p for network in (parts.unet, parts.vae, *parts.texts) for p in network.parameters()]
    for p in parameters:
        p.view(-1)[::512].sum()  # weights that are still mapped from the file become resident when they are used
    print((resident("VmHWM:") - before) / sum(p.nbytes for p in parameters))
    del parts, parameters, p
"""


def write_full_size(path: Path) -> None:
    """SD 1.5 in half precision: a true header before 2.1 GB of zeros, a hole that takes no room on the disk."""
    with torch.device("meta"):
        models = UNet(SD15.unet), VAE(SD15.vae), TextEncoder(SD15.texts[0])
    header, end = {}, 0
    for part, model in zip(parts(SD15), models, strict=True):
        state = model.state_dict()
        for key_map in part.key_maps("compvis"):
            x = key_map.write(state)
            offsets = [end, end := end + 2 * x.numel()]
            header[key_map.theirs[0]] = {"dtype": "F16", "shape": list(x.shape), "data_offsets": offsets}
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + end)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux' account of memory")
def test_loading_sd15_takes_at_most_1_3_times_its_weights_as_stored_and_cast(tmp_path):
    """At the peak, pages mapped from the file included, although the kernel could drop those."""
    path = tmp_path / "sd15.safetensors"
    write_full_size(path)
    result = subprocess.run([sys.executable, "-c", LOAD, path], capture_output=True, text=True, check=True)
    as_stored, cast = map(float, result.stdout.split())
    assert 0.9 < as_stored <= 1.3
    assert 0.9 < cast <= 1.3
