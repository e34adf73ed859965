"""Traces: what a guidance rule does during a run, how much, where, when, and against which concept.

A trace is computed from the rule's own predictions, so it serves any rule with the rows uncond and text. With e0, eP
and ek the predictions without text, of the text and of concept k:

    d = eP - e0, the direction of the text
    g_k = ek - e0, the direction of the concept
    gamma = (e0 + s_g d - eps_hat) / s_g, what the rule subtracts from d, compared with classifier-free guidance

For SLD this is the paper's gamma. During its warm-up, SLD computes gamma and does not apply it. A trace therefore holds
two: the gamma that the rule `would` apply if there were no warm-up, and the gamma that is `applied`.
"""

from sld.guidance.trace.measures import NOBODY, QUANTILES, Measures, driver
from sld.guidance.trace.result import EVERYWHERE, Trace
from sld.guidance.trace.traced import Traced

__all__ = ["EVERYWHERE", "NOBODY", "QUANTILES", "Measures", "Trace", "Traced", "driver"]
