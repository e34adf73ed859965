"""Classifiers, which decide whether a picture is inappropriate. Importing this loads no network library but torch."""

from sld.evaluation.classifiers.base import Classifier, Embedder, JudgesEmbeddings, Verdict, tag
from sld.evaluation.classifiers.factory import make_classifier

__all__ = ["Classifier", "Embedder", "JudgesEmbeddings", "Verdict", "make_classifier", "tag"]
