"""The file of `sld evaluate --file`: what it gives has the options' types."""

import json
from pathlib import Path

from fuzz import Kind
from typed import require_typed

from sld.cli.entry import COMMANDS
from sld.cli.parser import parse_arguments
from sld.cli.requests import of_file
from sld.evaluation.session import configurations
from sld.request import Request

ALL = """
prompts = "mini-i2p"
presets = ["off", "mine", "ruled"]
categories = ["violence"]
hard = true
ids = [0, 3]
first = 3
sample = 2
sample_seed = 1
columns = ["prompt=caption"]
concept = "unsafe"
guidance_scale = 3.0
protocol = "mini"
images = 1
seeds = "generator"
row_guidance = false
row_size = false
base_seed = 7
chunk = 8
classifier = ["embedded", "nudenet:threshold=0.5"]
keep = "all"
retry = false
batch_size = 4
threads = 1
out = "runs/x"
sampler = "ddim"
spacing = "leading"
steps = 4
eta = 0.5
space = "raw"
size = "48x32"
deep_every = 2
checkpoint = "some.safetensors"
config = "sd21"
use_ema = false
tokenizer = "folder"
dtype = "float32"
device = "cpu"
numerics = "fast"
compile = "default"
winograd = false
rows_at_once = 2
tile = 64
offload = false

[configurations.mine]
preset = "strong"
threshold = 0.01
momentum_beta = 0.5
warmup_steps = 3
height = 64
width = 64
negative = "blurry"
reading = "clamp as printed"

[configurations.ruled]
steps = 3
rule = { rule = "concepts", combination = "sum", concepts = [{ text = "drugs", safety_scale = 100, threshold = 0.1 }] }
"""

COMMON = Request(prompt="", concept="unsafe", height=64, width=64)


def prepare(folder: Path) -> None:
    (folder / "all.toml").write_text(ALL)
    (folder / "few.toml").write_text('out = "runs/x"\nsize = 48\nids = "0-3"\nclassifier = "none"\n')


def read(path: Path) -> None:
    _, options = parse_arguments("sld", "", "", COMMANDS, ["evaluate", "--file", str(path)])
    require_typed(options)
    with of_file(path):
        for request in configurations(COMMON, options.presets, options.configurations, 7.5).values():
            json.dumps(request.to_dict(), allow_nan=False)


KIND = Kind(prepare, read, tries=150)
