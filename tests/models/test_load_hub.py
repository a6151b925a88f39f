"""Models on the hub: which commit is opened, and what each of the hub's errors says."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from huggingface_hub import HfApi, errors

from segregation.errors import ModelError
from segregation.models import hub
from segregation.models.load import load_model
from segregation.models.source import Source, find_source
from tests.conftest import byte_tokenizer, random_module

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "owner/tiny"


def answer(status: int) -> Any:
    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/api/models/owner/tiny"))


def wrapped(error: Exception) -> OSError:
    """As transformers wraps what the hub raises."""
    try:
        raise OSError("We couldn't open it") from error
    except OSError as outer:
        return outer


ERRORS: dict[str, tuple[Exception, str]] = {
    "gated": (errors.GatedRepoError("no", response=answer(403)), r"'owner/tiny' is gated: .*hf auth login"),
    "missing": (errors.RepositoryNotFoundError("no", response=answer(404)), r"there is no model 'owner/tiny' on .*hub"),
    "revision": (errors.RevisionNotFoundError("no", response=answer(404)), r"has no revision 'v9'; branches, tags"),
    "offline": (errors.OfflineModeIsEnabled("no"), r"not in the cache, and HF_HUB_OFFLINE forbids"),
    "busy": (errors.HfHubHTTPError("no", response=answer(503)), r"could not serve .* \(HTTP 503\); try again later"),
    "unreachable": (
        httpx.ConnectError("Name or service not known"),
        r"cannot be reached \(Name or service not known\)",
    ),
    "slow": (httpx.ReadTimeout("timed out"), r"cannot be reached \(timed out\)"),
    "incomplete": (
        errors.LocalEntryNotFoundError("cut off"),
        r"cannot be reached \(cut off\).* is not whole in the cache",
    ),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_each_error_of_the_hub_has_words_of_its_own(kind: str, monkeypatch: pytest.MonkeyPatch):
    error, words = ERRORS[kind]

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(HfApi, "model_info", fail)
    with pytest.raises(ModelError, match=words) as asked:
        load_model(NAME, revision="v9")
    assert hub.meaning(NAME, "v9", wrapped(error)) == str(asked.value)


def test_other_errors_are_not_taken_for_the_hubs(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any, **__: Any) -> Any:
        raise KeyError("a bug")

    monkeypatch.setattr(HfApi, "model_info", fail)
    with pytest.raises(KeyError, match="a bug"):
        load_model(NAME)


def test_the_hub_is_asked_once_and_not_for_long(monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []

    def fail(_self: Any, hub_id: str, **options: Any) -> Any:
        asked.append((hub_id, options))
        raise httpx.ConnectTimeout("timed out")

    monkeypatch.setattr(HfApi, "model_info", fail)
    with pytest.raises(ModelError, match="cannot be reached"):
        load_model(NAME)
    assert asked == [(NAME, {"revision": None, "timeout": 5.0})]


def test_a_repository_without_safetensors_is_refused_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch):
    files = [SimpleNamespace(rfilename=name) for name in ("config.json", "pytorch_model.bin")]
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: SimpleNamespace(sha=COMMIT, siblings=files))
    with pytest.raises(ModelError, match=r"has no \*\.safetensors file on the hub"):
        load_model(NAME)


def test_a_branch_is_pinned_to_its_commit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: SimpleNamespace(sha=COMMIT, siblings=None))
    source = find_source(NAME, "main")
    assert source == Source(NAME, NAME, COMMIT, "hub")
    assert source.options() == {"revision": COMMIT, "local_files_only": False}


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that holds one commit of a model, which its branch main names."""
    home = tmp_path / "models--owner--tiny"
    snapshot = home / "snapshots" / COMMIT
    random_module("jamba").save_pretrained(snapshot)
    byte_tokenizer().save_pretrained(snapshot)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return snapshot


def unreachable(*_: Any, **__: Any) -> Any:
    raise httpx.ConnectError("Name or service not known")


def test_a_cached_model_opens_without_the_hub_at_the_commit_it_holds(cached: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(HfApi, "model_info", unreachable)
    model = load_model(NAME)
    assert model.description["revision"] == COMMIT
    assert model.description["weights_sha256"] == load_model(cached).description["weights_sha256"]


def test_another_revision_than_the_cached_one_is_not_guessed(cached: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(HfApi, "model_info", unreachable)
    with pytest.raises(ModelError, match=r"'owner/tiny' at revision 'v9' is not whole in the cache"):
        load_model(NAME, revision="v9")


@pytest.mark.parametrize("lose", [lambda at: (at / "model.safetensors").unlink(), lambda at: shutil.rmtree(at)])
def test_a_cache_that_is_not_whole_is_said_to_be_so(
    cached: Path, lose: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(HfApi, "model_info", unreachable)
    lose(cached)
    with pytest.raises(ModelError, match=r"not whole in the cache|cannot be opened"):
        load_model(NAME)
