"""A sweep that is killed, again and again, until it is through. A script: python killed.py SWEEP FOLDER ROUNDS.

The parent imports everything once and forks; a child runs the command as a user would, and dies at a random moment.
"""

import os
import random
import signal
import sys
import threading
import time

import torch

import sld.ablation.report  # noqa: F401 (so that children find it imported)
from sld.cli import main


def die(seconds):
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def attempt(sweep, folder, seconds=None):
    """One run of the command, in a child; returns whether it was killed."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    if seconds is not None:
        threading.Thread(target=die, args=(seconds,), daemon=True).start()
    main(["ablate", sweep, "--out", folder])
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)  # no thread pool, so that a fork is a whole process
    sweep, folder, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    start = time.monotonic()
    attempt(sweep, f"{folder}-untouched")
    whole = time.monotonic() - start
    random.seed(0)
    # they get about as far together as a whole run
    killed = sum(attempt(sweep, folder, random.uniform(0.5, 1.5) * whole / rounds) for _ in range(rounds))
    print(f"killed {killed} of {rounds}; then {'killed' if attempt(sweep, folder) else 'done'}")
