"""CLIP's own tokenizer from Hugging Face's hub, or from its cache. Importing this loads no torch."""

from __future__ import annotations

from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from sld.text.vocabulary import HOW

REPOSITORY = "openai/clip-vit-large-patch14"
FILES = ("vocab.json", "merges.txt")

SECONDS = 5.0
"""Time that the hub has for its first answer. The environment variable HF_HUB_ETAG_TIMEOUT sets another one."""


def hub_tokenizer() -> Path:
    """Return the folder of CLIP's tokenizer in the hub's cache, after downloading it if it is not there.

    Raises:
        ValueError: it is not in the cache and cannot be downloaded; says within seconds why, and what to do.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    paths = [try_to_load_from_cache(REPOSITORY, name) for name in FILES]
    if not all(isinstance(path, str) for path in paths):
        reason = _unreachable()
        try:
            paths = [] if reason else [hf_hub_download(REPOSITORY, name) for name in FILES]
        except Exception as error:  # of whatever library the hub's client is made with
            reason = f"downloading it failed ({_first_line(error)})"
        if reason:
            raise ValueError(
                f"the checkpoint has no tokenizer, CLIP's is not in the hub's cache, and {reason}: {HOW}; or run 'hf "
                f"download {REPOSITORY} {' '.join(FILES)}' once while online"
            )
    return Path(str(paths[0])).parent


def _unreachable() -> str:
    """Return why nothing can be downloaded, "" if the hub answers. One short question; downloads try for minutes."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    seconds = float(constants.HF_HUB_ETAG_TIMEOUT)
    seconds = SECONDS if seconds == constants.DEFAULT_ETAG_TIMEOUT else seconds
    answer: SimpleQueue[str] = SimpleQueue()

    def ask() -> None:
        try:
            get_hf_file_metadata(hf_hub_url(REPOSITORY, FILES[0]), timeout=seconds)
            answer.put("")
        except Exception as error:  # see above
            answer.put(f"{constants.ENDPOINT} cannot be reached ({_first_line(error)})")

    Thread(target=ask, daemon=True).start()  # looking up a host's name knows no limit of time
    try:
        return answer.get(timeout=seconds)
    except Empty:
        return f"{constants.ENDPOINT} did not answer within {seconds:g} s"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
