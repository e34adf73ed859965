"""A run that is killed, again and again, until it is through. A script: python faults.py FOLDER ROUNDS.

The parent loads the model once and forks; a child that is killed leaves what it would leave in a real run. Half of the
children die at a random moment, the others at a call of os.replace: the file is written, but not yet in its place.
"""

import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from small import evaluation, go


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def run(folder, round_, seconds):
    """One attempt, in a child; returns whether it was killed."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    if round_ % 2:
        threading.Thread(target=lambda: (time.sleep(seconds), die()), daemon=True).start()
    else:
        calls, replace = iter(range(random.randrange(3), -1, -1)), os.replace
        os.replace = lambda *paths: replace(*paths) if next(calls) else die()
    go(evaluation(PIPE), folder)
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)  # no thread pool, so that a fork is a whole process
    import sld

    PIPE = sld.load()
    folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
    random.seed(0)
    killed = sum(run(folder, k, random.uniform(0.0, 0.3)) for k in range(rounds))
    print(f"killed {killed} of {rounds}; then {'done' if not run(folder, 1, 1e6) else 'killed'}")
