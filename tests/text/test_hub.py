"""CLIP's own tokenizer comes from the hub's cache, or from the hub, which has seconds to answer.

Mutants seen to fail here: the hub asked although the files are in the cache; HF_HUB_OFFLINE unheard; no limit of time;
an error of the download passed on.
"""

import time

import huggingface_hub
import pytest
from huggingface_hub import constants

from sld.hub import SECONDS
from sld.models.text import Tokenizer
from sld.published import SD15
from sld.testbed.vocabulary import write_tokenizer
from sld.text import hub


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache, and a hub that fails whoever asks it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", constants.DEFAULT_ETAG_TIMEOUT)
    answer(monkeypatch, lambda *_, **__: pytest.fail("the hub was asked"))
    return tmp_path


def answer(monkeypatch, what, download=None):
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", what)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download or what)


def fill(cache):
    repository = cache / ("models--" + hub.REPOSITORY.replace("/", "--"))
    write_tokenizer(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    return repository / "snapshots" / "abc"


def refused(match):
    with pytest.raises(ValueError, match=match) as raised:
        hub.hub_tokenizer()
    message = str(raised.value)
    assert "--tokenizer" in message and f"hf download {hub.REPOSITORY}" in message and "\n" not in message


def test_files_in_the_cache_are_taken_without_asking_the_hub(cache):
    folder = fill(cache)
    assert hub.hub_tokenizer() == folder


def test_offline_is_heard(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("HF_HUB_OFFLINE is set")


def test_a_hub_that_is_not_there_is_asked_once(cache, monkeypatch):
    asked = []

    def fail(url, timeout):
        asked.append((url, timeout))
        raise ConnectionError("no route\nto host")

    answer(monkeypatch, fail)
    refused(r"cannot be reached \(no route\)")
    assert len(asked) == 1 and asked[0][0].startswith(constants.ENDPOINT) and asked[0][1] == SECONDS <= 10


def test_a_hub_that_does_not_answer_is_waited_for_as_long_as_is_set(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.1)
    answer(monkeypatch, lambda *_, **__: time.sleep(20))
    begin = time.monotonic()
    refused(r"did not answer within 0\.1 s")
    assert time.monotonic() - begin < 10


def test_a_hub_that_answers_gives_the_files(cache, monkeypatch):
    folder = fill(cache / "hub")
    answer(monkeypatch, lambda *_, **__: None, lambda repository, name: str(folder / name))
    assert hub.hub_tokenizer() == folder
    with pytest.raises(ValueError, match="expects 49408"):
        Tokenizer.load(None, SD15.texts[0])

    def fail(*_):
        raise RuntimeError("cut off")

    answer(monkeypatch, lambda *_, **__: None, fail)
    refused(r"downloading it failed \(cut off\)")
