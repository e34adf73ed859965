"""Safe Latent Diffusion (Schramowski et al., CVPR 2023, arXiv 2211.05105) in plain PyTorch.

`sld.load` gives a pipeline; everything else is in the modules. Names here are looked up on first use, so that
`import sld` loads no torch.
"""

from sld.lazy import on_first_use

TYPE_CHECKING = False  # typing itself is not imported here: before `sld.__main__` runs, Ctrl-C ends in a traceback
if TYPE_CHECKING:
    from sld.guidance import PRESETS, SafeLatentGuidance, SLDConfig
    from sld.loading import load
    from sld.pipeline import Pipeline
    from sld.request import Request
    from sld.samplers import make_sampler
    from sld.state import SampleState

__version__ = "0.1.0"

_HOME = {
    "PRESETS": "sld.guidance",
    "Pipeline": "sld.pipeline",
    "Request": "sld.request",
    "SLDConfig": "sld.guidance",
    "SafeLatentGuidance": "sld.guidance",
    "SampleState": "sld.state",
    "load": "sld.loading",
    "make_sampler": "sld.samplers",
}

__all__ = [
    "PRESETS",
    "Pipeline",
    "Request",
    "SLDConfig",
    "SafeLatentGuidance",
    "SampleState",
    "load",
    "make_sampler",
]

__getattr__ = on_first_use(__name__, _HOME)
