"""What `sld explain` and `sld conflicts` show, on the embedded model."""

import csv
import subprocess
import sys
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import ALGORITHM
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image
from torch.testing import assert_close

import sld
from sld import images
from sld.batching import run
from sld.cli import main
from sld.explain import figure
from sld.explain.runs import conflicts, explain, x0_predicted
from sld.guidance import MAX, OFF, STRONG, WEAK, SafeLatentConcepts
from sld.guidance.trace import Trace
from sld.plotting import look
from sld.request import Request
from sld.samplers.schedule import Schedule

PROMPT = "a fox in a dark alley"
QUICK = ("--steps", "6", "--size", "32", "--device", "cpu")
NO_MODEL = ("--checkpoint", "nowhere.safetensors")  # fails as soon as it is opened


@pytest.fixture(scope="module")
def pipe():
    return sld.load()


@pytest.fixture(scope="module")
def request_():
    return Request(
        prompt=PROMPT,
        concept="unsafe, death",
        height=32,
        width=48,
        seed=3,
        guidance=replace(STRONG, warmup_steps=2),
        sampler="ddim",
        steps=6,
    )


# --- the runs


def test_both_runs_make_the_pictures_that_generate_makes(pipe, request_):
    """Killed by: another seed, the concept of the pipeline, guidance of the default scale."""
    asked = replace(request_, concept="knife", guidance=replace(request_.guidance, guidance_scale=5.0))
    e = explain(pipe, asked)
    assert np.array_equal(e.guided.picture, images.to_uint8(run(pipe, [asked]))[0])
    assert np.array_equal(e.plain.picture, images.to_uint8(run(pipe, [asked.without_safety()]))[0])
    assert not np.array_equal(e.plain.picture, e.guided.picture)


def test_a_film_strip_shows_what_each_evaluation_was_heading_for(pipe, request_):
    """Euler's last step goes all the way to where the last evaluation headed.

    Killed by: predictions paired with the latents after the step, the text's prediction shown.
    """
    e = explain(pipe, replace(request_, sampler="euler"), strip=3)
    assert e.shown == (0, 2, 5) and e.warmup == 2
    off = np.abs(e.guided.heading.astype(float) - e.guided.picture).max((1, 2, 3))
    assert off[2] <= 1 and off[1] > 10
    assert np.array_equal(e.guided.heading[0], e.plain.heading[0])  # in the warm-up nothing differs
    assert not np.array_equal(e.guided.heading[1], e.plain.heading[1])


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_x0_is_found_again_from_what_was_predicted(pipe, prediction):
    """Killed by: an eps read as v."""
    config = replace(pipe.config.schedule, prediction=prediction)
    schedule = Schedule.from_config(config, torch.float64)
    x0, eps = torch.randn(2, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor(400)
    x, a = schedule.add_noise(x0, eps, t), schedule.level(t)
    raw = eps if prediction == "eps" else a.signal * eps - a.noise * x0
    assert_close(x0_predicted(schedule, raw, x, schedule.level(t), "raw"), x0, **ALGORITHM)
    assert_close(x0_predicted(schedule, eps, x, schedule.level(t), "eps"), x0, **ALGORITHM)


def test_off_is_one_run_that_still_tells_the_gap(pipe, request_):
    e = explain(pipe, replace(request_, guidance=OFF))
    assert e.plain is None
    assert np.array_equal(e.guided.picture, images.to_uint8(run(pipe, [replace(request_, guidance=OFF)]))[0])
    assert not e.guided.trace.measures.applied.any() and e.guided.trace.measures.gap.any()


def test_a_concept_that_is_the_prompt_points_where_the_prompt_points(pipe, request_):
    """Killed by: directions that do not start at the unconditional prediction."""
    trace = conflicts(pipe, request_, [PROMPT, "skull"], [0, 1])
    cosine = trace.measures.conflict  # (6, 2, 3, 3)
    assert_close(cosine[..., 0, 1], torch.ones(6, 2))
    assert_close(cosine[..., 2, 0], cosine[..., 2, 1])
    assert (cosine[..., 2, 0] < 0.9).all()


def test_concepts_are_looked_at_along_a_run_that_they_do_not_guide(pipe, request_):
    """Killed by: a weight of 1."""
    longer = replace(request_, steps=12)  # than the warm-up of a concept, 10
    assert not conflicts(pipe, longer, ["knife", "skull"], [0]).measures.applied.any()


# --- the figures


def overlapping(fig) -> list[tuple[str, str]]:
    """Pairs of texts of a figure that lie on each other."""
    FigureCanvasAgg(fig).draw()
    boxes = [
        (text.get_text(), text.get_window_extent())
        for text in fig.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text.get_in_layout()
    ]
    boxes = [(words, box) for words, box in boxes if box.width > 0 and box.height > 0]
    return [(a, b) for (a, one), (b, other) in combinations(boxes, 2) if one.padded(-1).overlaps(other.padded(-1))]


THREE = SafeLatentConcepts.alike(["knife", "skull, death and coffin", "beer"], STRONG, "select")
CASES = {
    "guided": {"guidance": replace(STRONG, warmup_steps=2)},
    "long texts": {"prompt": "a fox, " * 30, "concept": "hate, harassment, violence, " * 8},
    "never acts": {"guidance": WEAK},
    "no warm-up": {"guidance": MAX},
    "off": {"guidance": OFF},
    "several": {"guidance": STRONG, "rule": THREE},
    "one column": {"steps": 1},
    "high": {"height": 64, "width": 32},
}


@pytest.mark.filterwarnings("ignore:the text is longer")
@pytest.mark.parametrize("name", CASES)
def test_no_label_of_an_explanation_lies_on_another(pipe, request_, name):
    """Killed by: brackets at the height of the columns' heads, no room for a bar beside a wide picture, a legend that
    may lie on the words about the warm-up.
    """
    e = explain(pipe, replace(request_, **CASES[name]))
    with look(figure.SETTINGS):
        assert overlapping(figure.explain(e, "strong")) == []


def test_a_figure_is_on_white_and_the_same_bytes_every_time(pipe, request_, tmp_path):
    e = explain(pipe, replace(request_, guidance=OFF, steps=3))
    for name in ("a.png", "b.png"):
        figure.write(lambda: figure.explain(e, "off"), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert (pixels == 255).all(axis=2).mean() > 0.5


@pytest.mark.parametrize(
    "concepts", [("knife", "skull"), ("weapons, knife and bomb", "pills", "beer", "skull", "coffin")]
)
def test_no_label_of_the_conflicts_lies_on_another(pipe, request_, concepts):
    """Killed by: names at the ends of lines left where they lie on each other."""
    trace = conflicts(pipe, request_, concepts, [0])
    with look(figure.SETTINGS):
        assert overlapping(figure.conflicts(trace, PROMPT)) == []


# --- the commands


def test_explain_writes_a_figure_and_all_numbers(tmp_path, capsys):
    """Killed by: the trace of the run without guidance written."""
    out, trace = tmp_path / "new" / "explain.pdf", tmp_path / "trace.safetensors"
    options = ("--safety", "strong", "--warmup-steps", "2", "--out", str(out), "--trace", str(trace), *QUICK)
    main(["explain", PROMPT, "--seed", "3", *options])
    assert capsys.readouterr().out.splitlines() == [str(out), str(trace)]
    assert out.read_bytes().startswith(b"%PDF")
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["explain.pdf", "trace.safetensors"]
    loaded, about = Trace.load(trace)
    assert (loaded.measures.applied[:, 0, 0] > 0).tolist() == [False] * 2 + [True] * 4
    assert loaded.concepts == ("unsafe, death",)
    assert about["request"]["seed"] == 3 and about["request"]["guidance"]["safety_scale"] == 2000


def test_conflicts_prints_the_matrix_and_writes_plot_and_table(tmp_path, capsys):
    out, table = tmp_path / "conflicts.svg", tmp_path / "conflicts.csv"
    main(["conflicts", PROMPT, "--concepts", f"{PROMPT}; skull", "--out", str(out), "--trace", str(table), *QUICK])
    head, text, same, other, *files = capsys.readouterr().out.splitlines()
    assert head.split() == ["0", "1", "2"] and files == [str(out), str(table)]
    assert text.split()[:4] == ["0", "prompt", "1.00", "1.00"]
    assert same.split()[-3:-1] == ["1.00", "1.00"] and other.split()[-1] == "1.00"
    rows = [
        row for row in csv.DictReader(table.open()) if row["measure"] == "cosine with d" and row["concept"] == "skull"
    ]
    assert len(rows) == 6
    assert f"{np.mean([float(row['value']) for row in rows]):.2f}" == other.split()[-3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("explain", PROMPT, "--out", "a.docx", *NO_MODEL), "a figure ends in .png, .pdf, .svg; got 'a.docx'"),
        (("explain", PROMPT, "--trace", "trace.txt", *NO_MODEL), "a trace ends in .safetensors or .csv"),
        (("explain", PROMPT, "--seed", "-1", *NO_MODEL), "seed"),
        (("explain", PROMPT, "--safety", "stong", *NO_MODEL), "did you mean 'strong'"),
        (("explain", PROMPT, "--concepts", "a; b", "--combination", "selct", *QUICK), "did you mean 'select'"),
        (("conflicts", PROMPT, "--concepts", "knife", *NO_MODEL), "at least two concepts"),
        (("conflicts", PROMPT, "--concepts", "a; b", "--out", "a.docx", *NO_MODEL), "a figure ends in"),
    ],
)
def test_what_cannot_be_shown_is_refused_before_the_run(arguments, message, capsys, tmp_path, monkeypatch):
    """Killed by: endings looked at only when the figure is written."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as status:
        main(arguments)
    assert status.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_error_says_what_to_install(tmp_path):
    program = f"""
import sys
from sld.cli import main

class Absent:
    def find_spec(name, path=None, target=None):
        if name == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'", name=name)

sys.meta_path.insert(0, Absent)
main(["explain", "a fox", "--out", {str(tmp_path / "explain.png")!r}])
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 2
    assert 'matplotlib is missing, which this command needs: pip install "sld[evaluate]"' in ended.stderr
