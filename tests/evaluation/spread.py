"""The run of `small`, shared by the processes of torchrun: python -m tests.evaluation.spread FOLDER."""

import sys
from pathlib import Path

from sld.evaluation.runner import evaluate
from sld.evaluation.spread import ranks
from tests.evaluation.small import evaluation

if __name__ == "__main__":
    with ranks() as group:
        evaluate(evaluation(), Path(sys.argv[1]), group)
