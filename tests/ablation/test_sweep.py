"""Sweeps as data, and the configurations that they stand for.

Mutants seen to fail here: a grid that runs in parallel, an "off" that keeps the base's guidance, a baseline that is not
first, axes of merged points lost, values not tried before the start or of any type, axes of one value in names, names
that clash passed over, the common s_g ignored, a whole rule torn apart, parallel axes numbered by the last, values of a
rule taken as they come, labels of any type, every point of an endless grid made.
"""

import re
import tomllib
from pathlib import Path

import pytest

import sld
from sld.ablation.points import listing, resolve
from sld.ablation.sweep import Axis, expand
from sld.evaluation.protocol import configuration
from sld.guidance import MAX, SEGA, SafeLatentConcepts
from sld.request import Request

SWEEPS = sorted((Path(__file__).parents[2] / "sweeps").glob("*.toml"))


@pytest.fixture(scope="module")
def pipe():
    return sld.load(numerics="invariant")


@pytest.fixture(scope="module")
def common(pipe):
    return Request(prompt="", concept=pipe.config.defaults.concept, height=64, width=64, sampler="ddim", steps=5)


def drafts(text):
    file = tomllib.loads(text)
    tables = [file.get(name, empty) for name, empty in (("base", {}), ("grid", []), ("zip", []), ("points", {}))]
    return expand(*tables, file.get("baseline", "off"))


def points(text, common, pipe, guidance_scale=7.5):
    return resolve(drafts(text), common, guidance_scale, pipe)


def settings(text):
    return {draft.name: dict(draft.settings) for draft in drafts(text)}


def test_a_grid_multiplies_out_a_zip_runs_in_parallel_and_points_stand_alone():
    text = """
        [base]
        preset = "strong"
        [[grid]]
        warmup_steps = [0, 7]
        threshold = [0.0, 0.025]
        [[zip]]
        steps = [10, 20]
        sampler = ["ddim", "pndm"]
        [points.mine]
        momentum_scale = 0.0
    """
    strong = {"preset": "strong"}
    assert settings(text) == {
        "off": {"preset": "off"},
        "warmup_steps-0.threshold-0.0": strong | {"warmup_steps": 0, "threshold": 0.0},
        "warmup_steps-0.threshold-0.025": strong | {"warmup_steps": 0, "threshold": 0.025},
        "warmup_steps-7.threshold-0.0": strong | {"warmup_steps": 7, "threshold": 0.0},
        "warmup_steps-7.threshold-0.025": strong | {"warmup_steps": 7, "threshold": 0.025},
        "steps-10.ddim": strong | {"steps": 10, "sampler": "ddim"},
        "steps-20.pndm": strong | {"steps": 20, "sampler": "pndm"},
        "mine": strong | {"momentum_scale": 0.0},
    }


def test_names_can_be_folders_and_labels_are_for_people():
    text = """
        [[grid]]
        preset = ["strong"]
        concept = [{ label = "one text, many words", value = "weapons, drugs" }, "death"]
        threshold = [-0.5]
        [points.sega]
        label = "SEGA: as published"
        rule = { rule = "sega" }
    """
    found = {draft.name: draft.label for draft in drafts(text)}

    assert found == {
        "off": "off",
        "one-text.many-words": "one text, many words",
        "death": "death",
        "sega": "SEGA: as published",
    }
    assert all(re.fullmatch(r"\w[\w.+-]*", name) for name in found)


def test_the_baseline_comes_first_and_off_keeps_what_is_no_guidance(pipe, common):
    text = """
        [base]
        preset = "max"
        threshold = 0.5
        steps = 3
        concept = "death"
        guidance_scale = 5.0
        [[grid]]
        warmup_steps = [0, 2]
    """
    off, *_ = points(text, common, pipe)
    assert off.request == configuration(
        common, "off", {"preset": "off", "steps": 3, "concept": "death", "guidance_scale": 5.0}
    )
    last, first = points('baseline = "warmup_steps-2"' + text, common, pipe)
    assert (last.name, first.name) == ("warmup_steps-2", "warmup_steps-0")


def test_a_point_is_the_configuration_that_evaluate_makes_of_its_settings(pipe, common):
    found = points('[[grid]]\npreset = ["weak", "max", "negative"]', common, pipe, guidance_scale=6.0)

    for point in found:
        assert point.request == configuration(common, point.name, {"preset": point.name, "guidance_scale": 6.0})


def test_rules_have_the_scale_of_the_sweep_where_they_give_none(common, pipe):
    """Mutant that failed: a rule's own default in its place, which is not the model's."""
    text = """
        [points.own]
        rule = { rule = "perp-neg", guidance_scale = 4.0, negatives = [{ text = "death" }] }
        [points.usual]
        rule = { rule = "perp-neg", negatives = [{ text = "death" }] }
        [points.within]
        rule = { rule = "sparse", every = 2, of = { rule = "sld", config = "strong" } }
    """
    _, own, usual, within = points(text, common, pipe, guidance_scale=3.0)
    assert (own.request.rule.guidance_scale, usual.request.rule.guidance_scale) == (4.0, 3.0)
    assert within.request.rule.rule.config.guidance_scale == 3.0


def test_tables_that_meet_in_one_configuration_share_a_point_that_lies_on_all_their_axes(pipe, common):
    text = """
        [[grid]]
        preset = ["max"]
        warmup_steps = [0, 3]
        [[grid]]
        preset = ["max"]
        threshold = [0.1, 1.0]
        [points.again]
        preset = "max"
    """
    found = points(text, common, pipe)

    assert [p.name for p in found] == ["off", "warmup_steps-0", "warmup_steps-3", "threshold-0.1"]
    assert found[1].same == ("warmup_steps-0", "threshold-1.0", "again") and found[1].request.guidance == MAX
    assert {axis.name: value.value for axis, value in found[1].axes.items()} == {"warmup_steps": 0, "threshold": 1.0}
    assert "warmup_steps-0 is also threshold-1.0, again" in listing(found)


def test_a_field_inside_the_rule_of_the_base_can_vary(pipe, common):
    text = """
        [base.rule]
        rule = "concepts"
        concepts = [{ text = "weapons" }, { text = "death" }]
        [[grid]]
        rule.combination = ["sum", "select"]
        [points.sega.rule]
        rule = "sega"
    """
    off, total, select, sega = points(text, common, pipe)

    assert not off.request.guarded
    for point, combination in ((total, "sum"), (select, "select")):
        rule = point.request.rule
        assert isinstance(rule, SafeLatentConcepts) and rule.combination == combination == point.name
        assert rule.concept_texts == ("weapons", "death")
    assert sega.request.rule == SEGA()  # a whole rule takes nothing over
    assert "threshold" not in sega.columns and '"rule": "sega"' in sega.columns["rule"]


def test_parallel_axes_are_one_axis_with_the_numbers_of_the_first():
    *_, last = drafts("[[zip]]\nsteps = [10, 50]\nwarmup_steps = [2, 7]")
    ((axis, value),) = last.axes.items()

    assert axis == Axis("steps, warmup_steps", frozenset({"steps", "warmup_steps", "warmup_fraction"}))
    assert (value.value, value.label) == (50, "steps 50, warmup_steps 7")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[grid]]\nwarmup_step = [1]", r"'warmup_step-1' is not possible: .* did you mean 'warmup_steps'\?"),
        ('[[grid]]\npreset = ["strnog"]', r"'strnog' is not possible: .* did you mean 'strong'\?"),
        ('[[grid]]\nthreshold = [0.5, "x"]', r"'x' is not possible: threshold must be a number; got 'x'"),
        ('[[grid]]\nsampler = ["dimm"]', r"'dimm' is not possible: .* did you mean 'ddim'\?"),
        ('[[grid]]\neta = [0.5]\nsampler = ["pndm", "lms"]', r"'pndm' is not possible: eta is a setting of ddim"),
        ('[[grid]]\nspace = ["epsi"]', r"'epsi' is not possible: space must be"),
        ("[[grid]]\nsteps = [5000]", r"'steps-5000' is not possible: steps must be .* to 1000"),
        ('[[grid]]\nsteps = ["x"]', r"'x' is not possible: steps must be a whole number; got 'x'"),
        ("[[grid]]\nheight = [63]", r"'height-63' is not possible: .* multiples of 4"),
        ('[[grid]]\nreading = ["clamp as pinted"]', r"did you mean 'clamp as printed'\?"),
        ('[points.a]\nrule = { rule = "segaa" }', r"'a' is not possible: no rule 'segaa', .* did you mean 'sega'\?"),
        ('[points.a]\nguidance_scale = 2.0\nrule = { rule = "cfg" }', "guidance_scale has no effect with a rule"),
        ('[points."a b"]', r"'a b' is not possible: a configuration's name is also a folder's"),
        ('[[grid]]\nrule = [{ rule = "sega" }]', r"a value of rule that is a table needs a label"),
        ("[[grid]]\nthreshold = 0.1", r"threshold needs a list of values"),
        ("[[zip]]\nsteps = [1, 2]\nthreshold = [0.1]", r"steps has 2, threshold has 1"),
        ('baseline = "sronk"\n[points.strong]', r"no point for a baseline 'sronk', .* did you mean 'strong'\?"),
        ("grid = 3", r"grid is a list of tables"),
        ("[base]\nrule = 5\n[[grid]]\nrule.scale = [1]", r"rule must be a table, since rule\.scale is given; got 5"),
        (
            '[[grid]]\nrule = [{ label = "a", rule = "cfg", scale = "5" }]',
            r"'a' is not possible: .*scale must be a number",
        ),
        (
            '[[grid]]\nrule = [{ label = "a", rule = "sega", concepts = 5 }]',
            r"'a' is not possible: .*must be a list; got 5",
        ),
        (
            '[[grid]]\nrule = [{ label = "a", rule = "sld", config = 5 }]',
            r"'a' is not possible: .*table of its fields; got 5",
        ),
        ('[[grid]]\nrule = [{ label = "a", rule = [] }]', r"'a' is not possible: no rule \[\]"),
        ('[[grid]]\nrule = [{ label = "a", rule = "cfg", scale = inf }]', r"'a' .*scale must be a finite number"),
        ("[[grid]]\nthreshold = [inf]", r"inf' is not possible: threshold must be a finite number"),
        ("[[grid]]\nguidance_scale = [1e30]", r"guidance_scale must be in \[0, 1000000000\]"),
        (f'[[grid]]\nconcept = ["{"x" * 101}"]', r"this value of concept needs a label"),
        ('[[grid]]\nconcept = ["a\\u2028b"]', r"this value of concept needs a label"),
        ('[points.a]\nlabel = "a\\nb"', r"points\.a: a label is one line of at most 100 characters; got 'a\\nb'"),
        ("[points.a]\nlabel = 5", r"points\.a: a label is one line"),
        (f'[points."{"x" * 151}"]\nlabel = "x"', r"at most 150 bytes"),
        (
            "\n".join(["[[grid]]", *(f"{k} = {[*range(9)]}" for k in ("steps", "seed", "a", "b", "c"))]),
            "has 59049 points",
        ),
        ("points = []", r"points are tables of their own"),
        ("[base]\nsteps = 3", r"the sweep has no points"),
        ('[points.death]\nsteps = 3\n[[grid]]\nconcept = ["death", "x"]', r"two points are called 'death'"),
    ],
)
def test_what_cannot_be_is_found_for_every_point_before_the_start(text, message, pipe, common):
    with pytest.raises(ValueError, match=message):
        points(text, common, pipe)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_shipped_sweeps_state_their_question_and_can_be(path, pipe, common):
    text = path.read_text(encoding="utf-8")

    assert re.match(r"# [A-Z][^\n]*(\n# [^\n]*)*\?", text)
    assert len(points(text, common, pipe)) > 2
