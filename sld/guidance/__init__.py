"""Guidance rules: how predictions under several conditions become one."""

from sld.guidance.afterwards import APG, Afterwards, Composed, Rescale
from sld.guidance.base import Guidance, Stateless
from sld.guidance.cfg import (
    CFGParams,
    CFGPredictions,
    ClassifierFreeGuidance,
    classifier_free,
    guided,
)
from sld.guidance.concepts import COMBINATIONS, Concept, ConceptPredictions, SafeLatentConcepts
from sld.guidance.dynamic import DynamicNegativeGuidance
from sld.guidance.perp_neg import Negative, PerpNeg
from sld.guidance.rules import READINGS, RULES, at_scale, from_data, to_data
from sld.guidance.sega import SEGA, SEGA_SAFETY, Edit
from sld.guidance.sld import (
    DEFAULT_CONCEPT,
    DIFFUSERS_CONCEPT,
    MAX,
    MEDIUM,
    OFF,
    PRESETS,
    STRONG,
    WEAK,
    Momentum,
    Predictions,
    Reading,
    SafeLatentGuidance,
    SLDConfig,
    SLDParams,
    guidance_for,
    preset,
    safe_latent_guidance,
    safety_mask,
)
from sld.guidance.sparse import Sparse
from sld.guidance.trace import Trace, Traced
from sld.guidance.traceable import Traceable
from sld.guidance.unguided import NoParams, TextPrediction, Unguided
from sld.guidance.wrapping import Wrapping

__all__ = [
    "APG",
    "COMBINATIONS",
    "DEFAULT_CONCEPT",
    "DIFFUSERS_CONCEPT",
    "MAX",
    "MEDIUM",
    "OFF",
    "PRESETS",
    "READINGS",
    "RULES",
    "SEGA",
    "SEGA_SAFETY",
    "STRONG",
    "WEAK",
    "Afterwards",
    "CFGParams",
    "CFGPredictions",
    "ClassifierFreeGuidance",
    "Composed",
    "Concept",
    "ConceptPredictions",
    "DynamicNegativeGuidance",
    "Edit",
    "Guidance",
    "Momentum",
    "Negative",
    "NoParams",
    "PerpNeg",
    "Predictions",
    "Reading",
    "Rescale",
    "SLDConfig",
    "SLDParams",
    "SafeLatentConcepts",
    "SafeLatentGuidance",
    "Sparse",
    "Stateless",
    "TextPrediction",
    "Trace",
    "Traceable",
    "Traced",
    "Unguided",
    "Wrapping",
    "at_scale",
    "classifier_free",
    "from_data",
    "guidance_for",
    "guided",
    "preset",
    "safe_latent_guidance",
    "safety_mask",
    "to_data",
]
