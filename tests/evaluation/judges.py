"""Classifiers that a test names as module:function."""

import os
import signal


def bright(pictures):
    """Whether a picture is brighter than middle grey."""
    return [bool(picture.mean() > 127) for picture in pictures]


def deadly(pictures):
    """Kills the second process of a run at its first picture."""
    if os.environ.get("RANK") == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return bright(pictures)
