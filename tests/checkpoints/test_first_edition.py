"""What the first edition wrote into its files is still read."""

from dataclasses import replace

from tiny import TINY1

from sld.config import Defaults, ModelConfig


def test_configs_of_the_first_edition_are_read():
    """It kept the size beside the parts and the sampler with the schedule. Killed by: the sampler dropped."""
    values = replace(TINY1, defaults=Defaults(size=16, sampler="ddim")).to_dict()
    values["size"] = values.pop("defaults")["size"]
    (values["text"],) = values.pop("texts")
    values["schedule"]["sampler"] = "ddim"
    assert ModelConfig.from_dict(values) == replace(TINY1, defaults=Defaults(size=16, sampler="ddim"))
