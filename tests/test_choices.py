"""Names that are known without torch are those of the things themselves.

Mutants seen to fail here: a preset, a reading and a metric left out; a field of SLD without a place in files.
"""

from dataclasses import fields
from importlib import import_module
from inspect import signature

import pytest

from sld import choices, config
from sld.ablation import choices as sweeps, report, table
from sld.cli import explain, options
from sld.cli.runs import ProtocolOptions
from sld.evaluation import choices as runs
from sld.evaluation.imported import imported
from sld.evaluation.protocol import PROTOCOLS, Protocol
from sld.explain import figure
from sld.guidance import COMBINATIONS, PRESETS, READINGS, RULES, SLDConfig
from sld.guidance.rules import AFTERWARDS
from sld.request import Request
from sld.samplers import GRIDS, Sampler


def test_guidance():
    assert tuple(PRESETS) == choices.PRESETS
    assert tuple(READINGS) == choices.READINGS
    assert tuple(RULES) == choices.RULES
    assert tuple(AFTERWARDS) == choices.AFTERWARDS
    assert tuple(COMBINATIONS) == choices.COMBINATIONS
    assert {field.name for field in fields(SLDConfig)} == choices.HYPERPARAMETERS


@pytest.mark.parametrize("name", config.SAMPLERS)
def test_samplers_and_their_spacings(name):
    entry = config.SAMPLERS[name]
    module, kind = entry.home.split(":")
    assert issubclass(getattr(import_module(module), kind), Sampler)
    assert set(entry.spacings) <= set(GRIDS)


@pytest.mark.parametrize("name", runs.CLASSIFIERS)
def test_classifiers_and_their_options(name):
    """Their makers have them; those that need packages which are not there are left out by importing late."""
    kind = runs.CLASSIFIERS[name]
    taken = set(signature(imported(kind.where).call).parameters)
    assert set(kind.options) <= taken
    assert set(kind.required) <= set(kind.options)
    assert kind.on_device == ("device" in taken)


def test_runs():
    assert tuple(PROTOCOLS) == runs.PROTOCOLS
    request = {field.name for field in fields(Request)} - {"prompt", "seed", "guidance", "start"}  # of single pictures
    assert {field.name for field in fields(runs.Settings)} == request | choices.HYPERPARAMETERS | {"preset", "changes"}


def test_sweeps_and_figures():
    assert sweeps.METRICS == table.NAMES
    assert sweeps.PLOTS == report.KINDS
    assert tuple(f".{name}" for name in figure.FORMATS) == explain.FIGURES


def test_options_have_every_field():
    guidance = {field.name for field in fields(options.GuidanceOptions)}
    assert guidance == choices.HYPERPARAMETERS | {"preset", "concept", "negative"}
    protocol = {field.name for field in fields(Protocol)}
    assert {field.name for field in fields(ProtocolOptions)} == protocol | {"protocol"}
