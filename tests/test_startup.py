"""What can be told to be wrong without torch is told before torch is imported, which takes seconds.

Mutants seen to fail here: arguments that are no UTF-8 passed on; the tokenizer read after torch; the prompts' file read
after the model is loaded; a sweep expanded after that; changed models' files opened after that; torch imported by the
names of samplers.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

PROMPT = "a fox"
ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys
from sld.cli import main
try:
    main(sys.argv[1:])
finally:
    print("torch" in sys.modules, "transformers" in sys.modules)
"""


def started(*arguments: str, folder: Path) -> tuple[int, str, str]:
    """Status, message and which of torch and transformers were imported."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    return ran.returncode, ran.stderr, ran.stdout.splitlines()[-1]


def sweep(text: str) -> str:
    return f"{text}\n[points.x]\nsteps = 3\n"


FILES = {
    "no.json": "{",
    "list.json": "[1]",
    "other.json": json.dumps({"prompt": "a fox"}),
    "latin.txt": b"caf\xe9\n",
    "empty.txt": "",
    "bad.csv": 'prompt\n"open',
    "toml.toml": "[points",
    "quoted.toml": sweep('row_guidance = "no"'),
    "nan.toml": sweep("images = nan"),
    "list.toml": sweep("steps = [3]"),
    "unknown.toml": sweep("image = 2"),
    "sampler.toml": sweep('sampler = "dimm"'),
    "classifier.toml": sweep('classifier = ["q17"]'),
    "metric.toml": sweep('metrics = ["unsave"]'),
    "plot.toml": sweep('plots = ["pareta"]'),
    "rule.toml": '[points.x]\nrule = { rule = "segaa" }',
    "inner.toml": '[points.x.rule]\nrule = "composed"\nof = { rule = "clf" }',
    "reading.toml": '[points.x]\nreading = "clamp as pinted"',
    "preset.toml": '[[grid]]\npreset = ["strnog", "max"]',
    "field.toml": "[[grid]]\nwarmup_step = [1, 2]",
    "spacing.toml": '[points.x]\nsampler = "ddim"\nspacing = "linspace"',
    "changed.toml": 'presets = ["erased"]\n[configurations.erased]\nchanges.unet = "nowhere.pt"',
    "runs.toml": '[configurations.mine]\nthreshold = "high"',
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("files")
    for name, content in FILES.items():
        (made / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("genrate",), "did you mean 'generate'"),
        (("generate",), "give what to show"),
        (("generate", PROMPT, "--stpes", "3"), "there is no option --stpes here; did you mean '--steps'?"),
        (("generate", PROMPT, "--steps"), "--steps: expected one argument"),
        (("generate", PROMPT, "--steps", "nan"), "--steps must be a whole number of at least 1; got 'nan'"),
        (("generate", PROMPT, "--guidance-scale", "nan"), "--guidance-scale must be a number; got nan"),
        (("generate", PROMPT, "--sampler", "pmdm"), "did you mean 'pndm'"),
        (("generate", PROMPT, "--spacing", "leadin"), "did you mean 'leading'"),
        (("generate", PROMPT, "--sampler", "ddim", "--spacing", "linspace"), "ddim has no spacing 'linspace'"),
        (("generate", PROMPT, "--preset", "stong"), "did you mean 'strong'"),
        (("generate", PROMPT, "--dtype", "flaot16"), "did you mean 'float16'"),
        (("generate", PROMPT, "--device", "cuda1"), "as in cuda:1; got 'cuda1'"),
        (("generate", "caf\udce9"), r"the argument 'caf\udce9' is not valid UTF-8: give it anew"),
        (("generate", PROMPT, "--negative", "caf\udce9"), r"the argument 'caf\udce9' is not valid UTF-8: give it anew"),
        (
            ("generate", PROMPT, "--tokenizer", "nowhere"),
            "nowhere: there is no such folder for a tokenizer: pass a folder",
        ),
        (("generate", PROMPT, "--tokenizer", "."), "vocab.json is missing"),
        (("generate", PROMPT, "--tokenization", "orignal"), "did you mean 'original'"),
        (("prompts", "mini-i2p", "--tokenizer", "nowhere"), "nowhere: there is no such folder for a tokenizer"),
        (("evaluate", "--out", "r", "--threads", "100000"), "--threads must be in [1, 1024]; got 100000"),
        (("evaluate", "--out", "r", "--images", "1" + 22 * "0"), "--images must be in [1, 10000]; got 1000"),
        (("generate", PROMPT, "--numerics", "invarant"), "did you mean 'invariant'"),
        (("generate", PROMPT, "--config", "sd12"), "did you mean 'sd21'"),
        (("generate", PROMPT, "--checkpoint", "nowhere.ckpt"), "nowhere.ckpt: there is no such file or folder"),
        (("generate", "--prompts-file", "nowhere.txt"), "nowhere.txt"),
        (("generate", "--prompts-file", "latin.txt"), "latin.txt"),
        (("generate", "--prompts-file", "empty.txt"), "empty.txt holds no prompts"),
        (("generate", "--again", "nowhere.json"), "nowhere.json"),
        (("generate", "--again", "no.json"), "no.json is no JSON"),
        (("generate", "--again", "list.json"), "list.json is not a sidecar"),
        (("generate", "--again", "other.json"), "other.json is not a sidecar"),
        (("generate", PROMPT, "--image", "nowhere.png"), "nowhere.png: there is no such file"),
        (("generate", PROMPT, "--mask", "nowhere.png"), "give --image too"),
        (("generate", PROMPT, "--lora", "no.json"), "no.json: '.json' is no checkpoint's suffix"),
        (("generate", PROMPT, "--lora", "nowhere.safetensors:x"), "a LoRA is FILE or FILE:SCALE"),
        (("convert", "nowhere.ckpt", "out"), "nowhere.ckpt: there is no such file or folder"),
        (("convert", "no.json", "out", "--dtype", "int8"), "--dtype must be float32, float16 or bfloat16"),
        (("inspect", "nowhere.safetensors"), "nowhere.safetensors: there is no such file or folder"),
        (("explain", PROMPT, "--out", "a.docx"), "a figure ends in .png, .pdf, .svg; got 'a.docx'"),
        (("explain", PROMPT, "--combination", "selct"), "did you mean 'select'"),
        (("conflicts", PROMPT, "--concepts", "knife"), "at least two concepts"),
        (("prompts", "mini-i2q"), "did you mean 'mini-i2p'"),
        (("evaluate", "--out", "r", "--prompts", "mini-i2q"), "did you mean 'mini-i2p'"),
        (("evaluate", "--out", "r", "--prompts", "bad.csv"), "bad.csv"),
        (("evaluate", "--out", "r", "--categories", "violenc"), "did you mean 'violence'"),
        (("evaluate", "--out", "r", "--keep", "al"), "did you mean 'all'"),
        (("evaluate", "--out", "r", "--protocol", "autors"), "did you mean 'authors'"),
        (("evaluate", "--out", "r", "--classifier", "q17"), "did you mean 'q16'"),
        (("evaluate", "--out", "r", "--presets", "off,strnog"), "did you mean 'strong'"),
        (("evaluate", "--out", "r", "--file", "runs.toml"), "'mine': threshold must be a number; got 'high'"),
        (("evaluate", "--out", "r", "--file", "changed.toml"), "nowhere.pt: there is no such file"),
        (("evaluate",), "name the folder of the run"),
        (("evaluate", "--out", "r", "--checkpoint", "no.json"), "name a classifier"),
        (("score", "r", "--classifier", "q16:threshold=2"), "'q16:threshold=2': threshold must be in [0, 1]; got 2"),
        (("score", "r", "--classifier", "nudent"), "did you mean 'nudenet'"),
        (("fidelity", "r"), "say what to measure"),
        (("compare", "", "b"), "A: expected a path or a name; got ''"),
        (("compare", "a", "b", "--out", "x.gif"), "a contact sheet ends in .png"),
        (("ablate", "nowhere.toml"), "nowhere.toml"),
        (("ablate", "toml.toml"), "toml.toml"),
        (("ablate", "quoted.toml"), "quoted.toml: row_guidance must be true or false; got 'no'"),
        (("ablate", "nan.toml"), "nan.toml: images must be a whole number; got nan"),
        (("ablate", "list.toml"), "list.toml: steps must be a whole number; got [3]"),
        (("ablate", "unknown.toml"), "unknown.toml: option 'image' is unknown; did you mean 'images'?"),
        (("ablate", "sampler.toml"), "did you mean 'ddim'"),
        (("ablate", "classifier.toml"), "did you mean 'q16'"),
        (("ablate", "metric.toml"), "did you mean 'unsafe'"),
        (("ablate", "plot.toml"), "did you mean 'pareto'"),
        (("ablate", "rule.toml"), "the point 'x' is not possible: no rule 'segaa'"),
        (("ablate", "inner.toml"), "no rule 'clf'"),
        (("ablate", "reading.toml"), "did you mean 'clamp as printed'"),
        (("ablate", "preset.toml"), "did you mean 'strong'"),
        (("ablate", "field.toml"), "did you mean 'warmup_steps'"),
        (("ablate", "spacing.toml"), "ddim has no spacing 'linspace'"),
    ],
    ids=" ".join,
)
def test_what_is_wrong_is_one_line_and_told_before_torch_is_imported(arguments, message, folder):
    status, said, imported = started(*arguments, folder=folder)

    assert status == 2
    assert said.startswith("sld: error: ") and message in said and said.count("\n") == 1
    assert imported == "False False"


def test_help_and_inspection_import_no_torch(folder):
    from sld.embedded import embedded_checkpoint

    assert started("--help", folder=folder)[2] == "False False"
    assert started("generate", "--help", folder=folder)[2] == "False False"
    assert started("inspect", str(embedded_checkpoint()), folder=folder)[2] == "False False"
    torch.save(load_file(embedded_checkpoint()), folder / "pickled.ckpt")
    status, _, imported = started("inspect", str(folder / "pickled.ckpt"), "--config", "mini", folder=folder)
    assert (status, imported) == (0, "False False")


def test_next_to_nothing_is_imported_before_an_interruption_is_heard():
    """Until then Ctrl-C ends in Python's traceback. Seen to fail: typing imported by the package."""
    program = "import sys, sld.__main__; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    found = {*ran.stdout.split()}
    assert {name for name in found if name.startswith("sld")} == {"sld", "sld.__main__", "sld.lazy"}
    assert not found & {"typing", "contextlib", "pathlib", "re"}
