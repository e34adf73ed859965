"""Classifiers of pictures: what counts as inappropriate. Importing this loads no network library but torch."""

from sld.evaluation.classifiers.base import Classifier, Embedder, JudgesEmbeddings, Verdict, tag
from sld.evaluation.classifiers.factory import CLASSIFIERS, make_classifier

__all__ = ["CLASSIFIERS", "Classifier", "Embedder", "JudgesEmbeddings", "Verdict", "make_classifier", "tag"]
