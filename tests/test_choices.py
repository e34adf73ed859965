"""Names that are known without torch are those of the things themselves.

Mutants seen to fail here: a preset, a reading and a metric left out; a field of SLD without a place in files.
"""

from dataclasses import fields

from sld import choices, config
from sld.ablation import choices as sweeps
from sld.ablation import report, table
from sld.cli import explain, options
from sld.cli.runs import ProtocolOptions
from sld.evaluation import choices as runs
from sld.evaluation.classifiers import factory
from sld.evaluation.protocol import PROTOCOLS, Protocol
from sld.explain import figure
from sld.guidance import COMBINATIONS, PRESETS, READINGS, RULES, SLDConfig
from sld.guidance.rules import AFTERWARDS
from sld.request import Request
from sld.samplers import SAMPLERS


def test_guidance():
    assert tuple(PRESETS) == choices.PRESETS
    assert tuple(READINGS) == choices.READINGS
    assert tuple(RULES) == choices.RULES
    assert tuple(AFTERWARDS) == choices.AFTERWARDS
    assert tuple(COMBINATIONS) == choices.COMBINATIONS
    assert {field.name for field in fields(SLDConfig)} == choices.HYPERPARAMETERS


def test_samplers_and_their_spacings():
    assert {name: entry.spacings for name, entry in config.SAMPLERS.items()} == {
        name: tuple(spacings) for name, spacings in SAMPLERS.items()
    }


def test_runs():
    assert tuple(PROTOCOLS) == runs.PROTOCOLS
    assert set(runs.CLASSIFIERS) == set(factory.MAKERS)
    request = {field.name for field in fields(Request)} - {"prompt", "seed", "guidance"}
    assert {field.name for field in fields(runs.Settings)} == request | choices.HYPERPARAMETERS | {"preset"}


def test_sweeps_and_figures():
    assert sweeps.METRICS == table.NAMES
    assert sweeps.PLOTS == report.KINDS
    assert tuple(f".{name}" for name in figure.FORMATS) == explain.FIGURES


def test_options_have_every_field():
    guidance = {field.name for field in fields(options.GuidanceOptions)}
    assert guidance == choices.HYPERPARAMETERS | {"preset", "concept", "negative"}
    protocol = {field.name for field in fields(Protocol)}
    assert {field.name for field in fields(ProtocolOptions)} == protocol | {"protocol"}
