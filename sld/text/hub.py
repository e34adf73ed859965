"""CLIP's own tokenizer from Hugging Face's hub, or from its cache. Importing this loads no torch."""

from __future__ import annotations

from pathlib import Path

from sld.hub import first_line, unreachable
from sld.text.vocabulary import HOW

REPOSITORY = "openai/clip-vit-large-patch14"
FILES = ("vocab.json", "merges.txt")


def hub_tokenizer() -> Path:
    """Return the folder of CLIP's tokenizer in the hub's cache, after downloading it if it is not there.

    Raises:
        ValueError: it is not in the cache and cannot be downloaded; says within seconds why, and what to do.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    paths = [try_to_load_from_cache(REPOSITORY, name) for name in FILES]
    if not all(isinstance(path, str) for path in paths):
        reason = unreachable(REPOSITORY, FILES[0])
        try:
            paths = [] if reason else [hf_hub_download(REPOSITORY, name) for name in FILES]
        except Exception as error:  # of whatever library the hub's client is made with
            reason = f"downloading it failed ({first_line(error)})"
        if reason:
            raise ValueError(
                f"the checkpoint has no tokenizer, CLIP's is not in the hub's cache, and {reason}: {HOW}; or run 'hf "
                f"download {REPOSITORY} {' '.join(FILES)}' once while online"
            )
    return Path(str(paths[0])).parent
