"""The run of `small`, shared by the processes of torchrun: python -m spread FOLDER."""

import sys
from pathlib import Path

from small import evaluation

from sld.evaluation.runner import evaluate
from sld.evaluation.spread import ranks

if __name__ == "__main__":
    with ranks() as group:
        evaluate(evaluation(), Path(sys.argv[1]), group)
