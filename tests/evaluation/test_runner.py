"""Runs: resumable, spread, the same to the bit, and adding up whatever fails.

Mutants seen to fail here: chunks made again whatever is there, a failed picture dropped, one that is not finite taken,
the batch not halved, distance to the wrong image, "flagged" keeping the flagged configuration alone, an exchanged
picture judged, scores of older pictures taken, failures of an unchosen classifier counted, kept pictures not looked at
when a run goes on, rows of another run taken, errors of a classifier let through, torch's settings left as it set them.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from protocols import a_classifier
from small import evaluation, files, go

import sld
from sld.evaluation import runner
from sld.evaluation.classifiers import Verdict, make_classifier
from sld.evaluation.prompts import PromptSet, Row
from sld.evaluation.protocol import Protocol, configuration
from sld.evaluation.results import picture_path, read_results
from sld.evaluation.runner import kept, sample
from sld.evaluation.score import score
from sld.evaluation.spread import Ranks
from sld.request import Request

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def pipe():
    return sld.load()


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """A run that nobody disturbed, in one process."""
    folder = tmp_path_factory.mktemp("untouched")
    go(evaluation(), folder)
    return folder


def launch(script, *arguments, processes=None):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes else []
    # so that children test the same tree as this process
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, *map(str, (*script, *arguments))]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE, timeout=300)


def test_a_run_that_is_killed_at_six_moments_ends_as_if_nothing_had_been(untouched, tmp_path):
    ended = launch(["-m", "faults"], tmp_path / "run", 6)

    assert ended.returncode == 0, ended.stderr
    killed = int(ended.stdout.split()[1])
    assert killed >= 4 and ended.stdout.endswith("then done\n")
    assert files(tmp_path / "run") == files(untouched)


def test_pictures_are_written_while_the_next_ones_are_made(untouched, tmp_path, pipe, monkeypatch):
    """The first chunk's records stay unwritten until another chunk is sampled."""
    second, write, make, made = threading.Event(), runner.store_chunk, runner.make_chunk, []

    def make_chunk(*arguments):
        made.append(arguments)
        if len(made) == 2:
            second.set()
        return make(*arguments)

    def store_chunk(*arguments):
        assert second.wait(timeout=60)
        write(*arguments)

    monkeypatch.setattr(runner, "make_chunk", make_chunk)
    monkeypatch.setattr(runner, "store_chunk", store_chunk)
    go(evaluation(pipe), tmp_path)

    assert files(tmp_path) == files(untouched)


@pytest.mark.parametrize("chunk", [0, 19])
def test_a_disk_that_is_full_ends_the_run(tmp_path, pipe, monkeypatch, chunk):
    def store_chunk(evaluation, folder, number, made):
        if number == chunk:
            raise OSError(28, "no space left")

    monkeypatch.setattr(runner, "store_chunk", store_chunk)
    with pytest.raises(OSError, match="no space left"):
        go(evaluation(pipe), tmp_path)


def test_damaged_and_missing_chunks_are_made_again(untouched, tmp_path, pipe):
    run = evaluation(pipe)
    for name, content in files(untouched).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    first, second, *_ = sorted((tmp_path / "chunks").iterdir())
    first.write_bytes(first.read_bytes()[:-50])
    second.unlink()
    (tmp_path / "chunks" / ".partial-0").mkdir()
    (tmp_path / "chunks" / ".partial-0" / "000000.jsonl").write_bytes(b"half")

    made = []
    go(run, tmp_path, lambda done, todo: made.append((done, todo)))
    assert made[-1] == (16, 16)
    assert files(tmp_path) == files(untouched)


def test_several_processes_give_the_same_bits_also_after_a_part_by_another(untouched, tmp_path):
    """Three, which go on where one left a third of the chunks."""
    for name, content in files(untouched).items():
        if name[-7] not in "147":
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(content)
    ended = launch(["-m", "spread"], tmp_path, processes=3)

    assert ended.returncode == 0, ended.stderr
    assert files(tmp_path) == files(untouched)


def test_a_dead_rank_ends_the_run_with_an_error_and_loses_only_its_chunk(tmp_path):
    command = [
        "-m",
        "sld",
        "evaluate",
        "--first",
        "10",
        "--chunk",
        "8",
        "--presets",
        "off,max",
        "--images",
        "2",
        "--steps",
        "2",
    ]
    command += ["--sampler", "ddim", "--classifier", "judges:deadly", "--out", tmp_path]
    ended = launch(command, processes=2)

    assert ended.returncode != 0
    assert "lost another process" in ended.stderr or "SIGKILL" in ended.stderr
    protocol = json.loads((tmp_path / "protocol.json").read_text())
    done = sorted(path.stem for path in (tmp_path / "chunks").glob("*.jsonl")) if (tmp_path / "chunks").exists() else []
    assert protocol["images"] == 2 and not {"000001", "000003"} & set(done)


def test_no_batch_size_changes_a_bit_with_invariant_numerics(tmp_path):
    pipe = sld.load(numerics="invariant")
    for size in (1, 5, 16):
        go(evaluation(pipe, rows=3, batch_size=size), tmp_path / str(size))

    one, five, sixteen = (files(tmp_path / str(size)) for size in (1, 5, 16))
    assert one == five == sixteen


def test_where_memory_runs_out_the_batch_is_halved_and_the_run_goes_on(tmp_path, pipe, monkeypatch):
    whole = runner.run

    def small(pipe, requests, progress=None, noise=None):
        if len(requests) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return whole(pipe, requests, progress, noise)

    monkeypatch.setattr(runner, "run", small)
    go(evaluation(pipe, rows=4), tmp_path)

    results = read_results(tmp_path)
    assert len(results.records) == 16 and all(record.failure is None for record in results.records)


def test_a_picture_too_large_for_memory_is_a_failure_with_its_reason(pipe, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(runner, "run", full)
    assert sample(pipe, evaluation(pipe, rows=1).tasks(0)[:3]) == ["out of memory"] * 3


def test_any_other_error_is_no_failure_of_a_picture(pipe, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(runner, "run", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        sample(pipe, evaluation(pipe, rows=1).tasks(0))


def test_failed_rows_are_recorded_and_everything_adds_up(tmp_path, pipe):
    rows = tuple(Row(k, "a fox", ("violence",), seed=k, height=side, width=64) for k, side in enumerate((64, 63, 64)))
    template = Request(prompt="", concept=pipe.config.defaults.concept, height=64, width=64, sampler="ddim", steps=2)
    overflow = configuration(template, "overflow", {"preset": "off", "guidance_scale": 1e38})
    run = evaluation(
        pipe,
        prompts=PromptSet("mine", "0" * 64, rows),
        configurations={"off": configuration(template, "off", {"preset": "off"}), "overflow": overflow},
        protocol=Protocol(images=2, row_size=True),
    )
    go(run, tmp_path)

    results = read_results(tmp_path)
    reasons = {(r.configuration, r.row): r.failure for r in results.records}
    assert len(results.records) == 3 * 2 * 2
    assert "multiples of 4" in reasons["off", 1] and reasons["overflow", 0] == "not finite"
    assert reasons["off", 0] is None and reasons["off", 2] is None
    assert len(results.decisions("off")[0]) == 4 and len(results.decisions("overflow")[0]) == 0


def test_failed_pictures_are_made_again_on_request_only(tmp_path, pipe, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(runner, "run", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
        go(evaluation(pipe, rows=2), tmp_path)
    go(evaluation(pipe, rows=2), tmp_path)
    assert all(record.failure == "out of memory" for record in read_results(tmp_path).records)

    go(evaluation(pipe, rows=2, retry=True), tmp_path)
    assert all(record.failure is None for record in read_results(tmp_path).records)


def test_a_changed_configuration_is_refused(tmp_path, pipe):
    go(evaluation(pipe, rows=1), tmp_path)

    with pytest.raises(ValueError, match=r"configurations\.off\.steps: 1 before, 3 now"):
        go(evaluation(pipe, rows=1, steps=3), tmp_path)


def test_distance_is_to_the_same_image_of_the_first_configuration(tmp_path, pipe):
    go(evaluation(pipe, rows=2, names=("max", "off"), keep="all"), tmp_path)

    results = read_results(tmp_path)
    by = {(r.configuration, r.row, r.image): r for r in results.records}
    pixels = {key: np.asarray(Image.open(results.picture(r)), float) / 255 for key, r in by.items()}
    for (name, row, image), record in by.items():
        expected = np.sqrt(np.mean((pixels[name, row, image] - pixels["max", row, image]) ** 2))
        assert record.distance["rms"] == pytest.approx(expected, abs=1e-12)
    assert {r.distance["ssim"] for r in results.records if r.configuration == "max"} == {1.0}
    assert any(r.distance["rms"] > 0 for r in results.records if r.configuration == "off")


def test_flagged_keeps_a_flagged_image_in_all_configurations():
    def record(name, row, image, unsafe):
        verdicts = {"a": {"unsafe": False, "detail": {}}, "b": {"unsafe": unsafe, "detail": {}}}
        return {"configuration": name, "row": row, "image": image, "verdicts": verdicts}

    records = [record("off", 0, 0, True), record("off", 0, 1, False), record("off", 1, 0, False)]
    records += [record("max", 0, 0, False), {**record("max", 0, 1, True), "failure": "not finite"}]

    assert kept("flagged", records) == [("off", 0, 0), ("max", 0, 0)]
    assert kept("none", records) == []
    assert len(kept("all", records)) == 4


def test_kept_pictures_are_those_that_were_judged(tmp_path, pipe):
    run = evaluation(pipe, rows=2, keep="all")
    go(run, tmp_path)

    for line in (tmp_path / "chunks" / "000000.jsonl").read_text().splitlines()[2:]:
        record = json.loads(line)
        path = picture_path(tmp_path, record["configuration"], record["row"], record["image"])
        pixels = np.asarray(Image.open(path))
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == record["sha256"]
        (verdict,) = run.classifiers[0](torch.from_numpy(pixels.copy())[None])
        assert verdict.unsafe == record["verdicts"]["embedded"]["unsafe"]


def test_a_classifier_added_later_finds_what_it_would_have_found(tmp_path, pipe):
    bright = make_classifier("judges:bright")
    go(evaluation(pipe, rows=3, keep="all"), tmp_path / "later")
    score(tmp_path / "later", bright, Ranks())
    go(evaluation(pipe, rows=3, classifiers=[make_classifier("embedded"), bright]), tmp_path / "at once")

    later, at_once = read_results(tmp_path / "later"), read_results(tmp_path / "at once")
    assert later.records == at_once.records and later.classifiers == at_once.classifiers
    assert read_results(tmp_path / "later", ["embedded"]).classifiers == ("embedded",)


class Bytes:
    """An embedder: the first pixels of a picture."""

    @property
    def protocol(self):
        return {"embedder": "bytes"}

    def embed(self, pictures):
        return pictures.flatten(1)[:, :48].float()


class Red:
    """A classifier of its embeddings."""

    name, protocol, embedder = "red", a_classifier("red"), Bytes()

    def judge(self, embeddings):
        return [Verdict(bool(row.mean() > 100), {"mean": row.mean().item()}) for row in embeddings]

    def __call__(self, pictures):
        return self.judge(self.embedder.embed(pictures))


def test_kept_embeddings_serve_a_later_classifier_without_any_picture(tmp_path, pipe):
    go(evaluation(pipe, rows=3, embedder=Bytes()), tmp_path / "later")
    score(tmp_path / "later", Red(), Ranks())
    go(evaluation(pipe, rows=3, classifiers=[make_classifier("embedded"), Red()]), tmp_path / "at once")

    assert not (tmp_path / "later" / "images").exists()
    assert read_results(tmp_path / "later").records == read_results(tmp_path / "at once").records


def test_a_classifier_that_needs_what_was_not_kept_is_refused_before_it_begins(tmp_path, pipe):
    go(evaluation(pipe, rows=1, keep="flagged"), tmp_path)

    with pytest.raises(ValueError, match="made with --keep all, or with --embed"):
        score(tmp_path, Red(), Ranks())
    with pytest.raises(ValueError, match=r"made with --keep all$"):
        score(tmp_path, make_classifier("judges:bright"), Ranks())


def test_an_unreadable_or_exchanged_picture_is_a_failure_with_its_reason(tmp_path, pipe):
    go(evaluation(pipe, rows=2, keep="all"), tmp_path)
    picture_path(tmp_path, "off", 0, 0).write_bytes(b"no picture")
    picture_path(tmp_path, "off", 0, 1).write_bytes(picture_path(tmp_path, "off", 1, 1).read_bytes())
    score(tmp_path, make_classifier("judges:bright"), Ranks())

    reasons = {(r.row, r.image): r.failure for r in read_results(tmp_path).records if r.configuration == "off"}
    assert reasons[0, 0] == "unreadable picture" and reasons[0, 1] == "not the picture that was made"
    assert reasons[1, 0] is None and reasons[1, 1] is None


def test_what_one_classifier_could_not_judge_is_no_failure_for_another(tmp_path, pipe):
    go(evaluation(pipe, rows=1, keep="all"), tmp_path)
    picture_path(tmp_path, "off", 0, 0).unlink()
    score(tmp_path, make_classifier("judges:bright"), Ranks())

    assert any(record.failure for record in read_results(tmp_path).records)
    assert not any(record.failure for record in read_results(tmp_path, ["embedded"]).records)


def test_configurations_of_different_sizes_have_no_distance(tmp_path, pipe):
    small = evaluation(pipe).configurations["off"]
    configs = {"off": small, "wide": configuration(small, "wide", {"preset": "off", "width": 128})}
    go(evaluation(pipe, rows=1, configurations=configs, classifiers=()), tmp_path)

    distances = {record.configuration: record.distance for record in read_results(tmp_path).records}
    assert distances["off"]["rms"] == 0.0 and distances["wide"] == {}


def test_scores_of_older_pictures_are_not_taken_for_those_of_new_ones(tmp_path, pipe):
    go(evaluation(pipe, rows=1, keep="all"), tmp_path)
    score(tmp_path, make_classifier("judges:bright"), Ranks())
    chunk = next((tmp_path / "chunks").iterdir())
    _, _, body = chunk.read_bytes().partition(b"\n")
    body = body.replace(b'"image": 0', b'"image":  0')
    chunk.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)

    with pytest.raises(ValueError, match="run sld score again"):
        read_results(tmp_path)


def test_a_folder_that_cannot_be_written_any_more_stops_the_run_and_leaves_it_whole(tmp_path, pipe, untouched):
    run = evaluation(pipe)

    def full(*_):
        (tmp_path / "chunks").rename(tmp_path / "away")
        (tmp_path / "chunks").write_text("no folder")  # chmod does not stop root

    with pytest.raises(OSError):
        go(run, tmp_path, lambda done, todo: full() if done == 16 else None)
    (tmp_path / "chunks").unlink()
    (tmp_path / "away").rename(tmp_path / "chunks")
    go(run, tmp_path)
    assert files(tmp_path) == files(untouched)


def test_kept_pictures_that_are_lost_damaged_or_exchanged_are_made_again(tmp_path, pipe):
    run = evaluation(pipe, rows=6, keep="all", steps=1, names=("off",), protocol=Protocol(images=1, chunk=1))
    go(run, tmp_path)
    before = files(tmp_path)
    lost, damaged, exchanged, other = (picture_path(tmp_path, "off", row, 0) for row in range(4))
    lost.unlink()
    damaged.write_bytes(damaged.read_bytes()[:200])
    exchanged.write_bytes(other.read_bytes())

    made = []
    with pytest.warns(UserWarning) as told:
        go(run, tmp_path, lambda done, todo: made.append(todo))
    said = [str(warning.message) for warning in told]
    for path, reason in ((lost, "lost"), (damaged, "unreadable"), (exchanged, "not the picture that was made")):
        assert any(str(path) in line and reason in line and "made again" in line for line in said)
    assert made == [3, 3, 3] and files(tmp_path) == before


def test_rows_of_another_run_are_refused_and_written_again(tmp_path, pipe):
    """The prompts hold what str.splitlines takes for line ends."""
    rows = tuple(Row(k, f"a fox{sign}", ("violence",), seed=k) for k, sign in enumerate("\u2028\x85"))
    run = evaluation(pipe, prompts=PromptSet("mine", "0" * 64, rows), names=("off",), steps=1)
    go(run, tmp_path)
    assert read_results(tmp_path).rows == {row.id: row for row in rows}

    whole = files(tmp_path)
    runner.write_rows(tmp_path, [Row(k, "an owl", ("hate",), seed=k) for k in range(2)])
    with pytest.raises(ValueError, match=r"rows\.jsonl holds the rows of another run: run the same command again"):
        read_results(tmp_path)
    go(run, tmp_path)
    assert files(tmp_path) == whole


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("raising", "judges.raising raised ZeroDivisionError: no light"),
        ("leaving", "judges.leaving called sys.exit(0)"),
        ("odd", "judges.odd returned str, expected a list with a verdict for each picture"),
    ],
)
def test_what_a_classifier_does_wrong_is_a_failure_and_no_success(tmp_path, pipe, function, reason):
    run = evaluation(pipe, rows=1, names=("off",), steps=1, classifiers=[make_classifier(f"judges:{function}")])
    with pytest.warns(UserWarning, match="pictures fail"):
        go(run, tmp_path)

    results = read_results(tmp_path)
    assert [record.failure for record in results.records] == [reason] * 2
    with pytest.raises(ValueError, match=r"all 2 pictures have failed, 2 of them because: judges\."):
        results.require_judged()


def test_a_classifier_that_changes_torch_changes_no_picture(tmp_path, pipe):
    before = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    for function in ("bright", "changing"):
        judge = make_classifier(f"judges:{function}")
        run = evaluation(pipe, rows=2, names=("off",), classifiers=[judge], protocol=Protocol(images=1, chunk=1))
        go(run, tmp_path / function)
        assert (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()) == before

    of_bright, of_changing = (read_results(tmp_path / name).records for name in ("bright", "changing"))
    assert [record.sha256 for record in of_bright] == [record.sha256 for record in of_changing]


def test_a_picture_that_could_not_be_judged_is_judged_when_it_is_there_again(tmp_path, pipe):
    go(evaluation(pipe, rows=1, keep="all", names=("off",), steps=1), tmp_path)
    path, judge = picture_path(tmp_path, "off", 0, 0), make_classifier("judges:bright")
    whole = path.read_bytes()
    path.unlink()
    with pytest.warns(UserWarning, match=r"images/off/00000-00\.png: lost picture: recorded as a failure"):
        score(tmp_path, judge, Ranks())
    assert [record.failure for record in read_results(tmp_path).records] == ["lost picture", None]

    path.write_bytes(whole)
    score(tmp_path, judge, Ranks())
    assert [record.failure for record in read_results(tmp_path).records] == [None, None]
