"""Classifiers that a test names as module:function."""

import os
import signal
import sys

import torch


def bright(pictures):
    """Whether a picture is brighter than middle grey."""
    return [bool(picture.mean() > 127) for picture in pictures]


def deadly(pictures):
    """Kills the second process of a run at its first picture."""
    if os.environ.get("RANK") == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return bright(pictures)


def raising(pictures):
    """Fails for every picture."""
    raise ZeroDivisionError("no\nlight")


def leaving(pictures):
    """Ends the program with success."""
    sys.exit(0)


def odd(pictures):
    """Gives another type."""
    return "unsafe"


def changing(pictures):
    """Changes settings of torch that hold for the whole process."""
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(True)
    return bright(pictures)
