"""Checkpoints by their names on the hub: from a cache built by hand, and from a mirror on this machine.

Mutants seen to fail here: a snapshot taken for whole whatever it lacks, or without its shards; a name taken for one on
the hub though it is a path here; the revision left out; every file downloaded; the hub asked before the cache.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from mirror import mirror
from tiny import TINY1, modules, same, states

import sld
from sld.checkpoints import CheckpointError, inspect, load, save_compvis, save_diffusers
from sld.checkpoints.hub import HubName, hub_name, located, wanted
from sld.testbed.vocabulary import write_tokenizer

COMMIT = "a" * 40
TINY = replace(TINY1, texts=(replace(TINY1.texts[0], vocabulary=833),))
UNET = "unet/diffusion_pytorch_model"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A repository's files: a diffusers folder with a tokenizer, and a single file beside."""
    made = tmp_path_factory.mktemp("repository") / "model"
    save_diffusers(made, TINY, *modules(TINY))
    (made / "tokenizer").mkdir(exist_ok=True)
    write_tokenizer(made / "tokenizer")
    save_compvis(made / "one.safetensors", TINY, *modules(TINY))
    (made / "README.md").write_text("a model")
    return made


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def fill(cache, folder, names, ref="main"):
    """The cache as the hub's client leaves it: contents by their hash, and links to them in a snapshot."""
    repository = cache / "models--org--name"
    for number, name in enumerate(names):
        blob, link = repository / "blobs" / f"{number:064x}", repository / "snapshots" / COMMIT / name
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / ref).write_text(COMMIT)
    return repository / "snapshots" / COMMIT


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/name", HubName("org/name", None, None)),
        ("org/name@fp16", HubName("org/name", "fp16", None)),
        ("org/name@refs/pr/7:a/b.ckpt", HubName("org/name", "refs/pr/7", "a/b.ckpt")),
        ("org/name-v1.5:x.safetensors", HubName("org/name-v1.5", None, "x.safetensors")),
        ("name", None),
        ("a/b/c", None),
        ("./org/name", HubName("org/name", None, None)),
        ("/org/name", None),
        ("../org/name", None),
        ("org/model.safetensors", None),
        ("here/name", None),
    ],
)
def test_a_name_on_the_hub_is_told_from_a_path(text, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert hub_name(Path(text)) == name


def test_a_folder_comes_from_the_cache_with_all_that_lies_in_it(cache, folder):
    snapshot = fill(cache, folder, [name for name in files(folder) if name != "one.safetensors"])
    assert located("org/name") == snapshot
    assert same(states(load("org/name")), states(load(folder)))
    assert sld.load("org/name").tokenizers[0].vocabulary.source == snapshot / "tokenizer"


def test_a_revision_and_a_single_file_are_looked_for_as_named(cache, folder):
    snapshot = fill(cache, folder, ["one.safetensors"], ref="fp16")
    assert located("org/name@fp16:one.safetensors") == snapshot / "one.safetensors"
    assert same(states(load(f"org/name@{COMMIT}:one.safetensors")), states(load(folder / "one.safetensors")))
    for other in ("org/name:one.safetensors", "org/name@fp16"):
        with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set: run 'hf download org/name"):
            located(other)


@pytest.mark.parametrize("lacks", ["model_index.json", f"{UNET}.safetensors", "vae/config.json"])
def test_a_cache_that_lacks_a_part_is_not_taken_for_whole(lacks, cache, folder):
    fill(cache, folder, [name for name in files(folder) if name != lacks])
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set: run 'hf download org/name' once while online"):
        inspect("org/name")


def test_shards_and_variants_of_the_cache_are_found(cache, folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / f"{UNET}.safetensors").rename(other / f"{UNET}-00001-of-00001.fp16.safetensors")
    keys = inspect(folder).checkpoint.files["unet"].tensors
    index = {"weight_map": dict.fromkeys(keys, "diffusion_pytorch_model-00001-of-00001.fp16.safetensors")}
    (other / f"{UNET}.safetensors.index.fp16.json").write_text(json.dumps(index))
    (other / "vae/diffusion_pytorch_model.safetensors").rename(other / "vae/diffusion_pytorch_model.fp16.safetensors")

    snapshot = fill(cache, other, [name for name in files(other) if name != "one.safetensors"])
    assert same(states(load("org/name")), states(load(folder)))
    (snapshot / f"{UNET}-00001-of-00001.fp16.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no whole checkpoint of this name"):
        inspect("org/name")


def test_what_is_downloaded_is_what_loading_reads_in_its_first_form():
    repository = [
        "README.md",
        "model_index.json",
        "v1-5.ckpt",
        "safety_checker/model.safetensors",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder/pytorch_model.bin",
        "tokenizer/merges.txt",
        "unet/config.json",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors.index.json",
        "vae/diffusion_pytorch_model-00001-of-00002.safetensors",
    ]
    assert sorted(wanted(repository)) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors.index.json",
    ]


def sld_inspect(name, cwd, endpoint, **environment):
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cwd / "home"), **environment}
    command = [sys.executable, "-m", "sld", "inspect", name]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120)


def test_a_mirror_is_asked_once_and_the_cache_from_then_on(folder, tmp_path):
    with mirror("org/name", folder) as (address, fetched):
        report = sld_inspect("org/name", tmp_path, address)
        assert report.returncode == 0 and "every key is accounted for" in report.stdout, report.stderr
        assert {"model_index.json", f"{UNET}.safetensors", "tokenizer/merges.txt"} <= set(fetched)
        assert not {"one.safetensors", "README.md"} & set(fetched)
        lost = sld_inspect("org/name:two.safetensors", tmp_path, address)
    again = sld_inspect("org/name", tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert again.returncode == 0 and again.stdout == report.stdout
    assert "has no two.safetensors; it has one.safetensors" in lost.stderr and lost.returncode == 2


def test_what_the_download_fails_with_is_told_with_the_command(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: None)

    def fail(*_, **__):
        raise RuntimeError("401 Client Error\nask for access")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", fail)
    with pytest.raises(CheckpointError, match=r"failed \(401 Client Error\): run 'hf download org/name --revision x'"):
        located("org/name@x")
