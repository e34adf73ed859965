"""Whether Hugging Face's hub can be reached, in seconds. Importing this loads no torch."""

from __future__ import annotations

from queue import Empty, SimpleQueue
from threading import Thread

SECONDS = 5.0
"""Time that the hub has for its first answer. The environment variable HF_HUB_ETAG_TIMEOUT sets another one."""


def unreachable(repository: str, file: str) -> str:
    """Return why nothing can be downloaded, "" if the hub answers. One short question; downloads try for minutes.

    Args:
        repository, file: what is asked for. Any answer will do, a refusal too.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    seconds = float(constants.HF_HUB_ETAG_TIMEOUT)
    seconds = SECONDS if seconds == constants.DEFAULT_ETAG_TIMEOUT else seconds
    answer: SimpleQueue[str] = SimpleQueue()

    def ask() -> None:
        try:
            get_hf_file_metadata(hf_hub_url(repository, file), timeout=seconds)
            answer.put("")
        except HfHubHTTPError:  # it is there; what it refuses is told where it is asked for
            answer.put("")
        except Exception as error:  # of whatever library the hub's client is made with
            answer.put(f"{constants.ENDPOINT} cannot be reached ({first_line(error)})")

    Thread(target=ask, daemon=True).start()  # looking up a host's name knows no limit of time
    try:
        return answer.get(timeout=seconds)
    except Empty:
        return f"{constants.ENDPOINT} did not answer within {seconds:g} s"


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its kind if it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)
