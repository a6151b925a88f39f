"""Which commit of a model the Hugging Face hub has, and what its errors mean in plain words."""

from pathlib import Path
from typing import Literal

from segregation.errors import ModelError

ANSWER_SECONDS = 5.0
"""How long the hub may take to say what it has. Downloads come after, with the hub's own timeouts and retries."""

Reached = Literal["hub", "cache"]
"""Where a hub model is read from: the hub (what is cached is not fetched again), or the cache alone."""


def resolve(hub_id: str, revision: str | None) -> tuple[str, Reached]:
    """The commit that a revision of a hub model names, and where it can be read from.

    The hub is asked once. Where it does not answer, or is not to be asked, the cache says which commit it holds.

    Raises:
        ModelError: no such repository or revision, none without consent to its terms, no safetensors in it, or no
            answer from the hub and nothing in the cache.
    """
    from huggingface_hub import HfApi

    try:
        found = HfApi().model_info(hub_id, revision=revision, timeout=ANSWER_SECONDS)
    except Exception as error:
        why = meaning(hub_id, revision, error)
        if why is None:
            raise
        commit = _cached_commit(hub_id, revision) if _no_answer(error) else None
        if commit is None:
            raise ModelError(why) from error
        return commit, "cache"
    files = [file.rfilename for file in found.siblings or ()]
    if files and not any(file.endswith(".safetensors") for file in files):
        raise ModelError(
            f"{hub_id!r} has no *.safetensors file on the hub, and no other format is read; take a revision that has "
            "them, or convert the weights with save_pretrained and give that folder"
        )
    if found.sha is None:
        raise ModelError(f"the hub names no commit for {hub_id!r}; give revision= as a commit hash")
    return found.sha, "hub"


def meaning(hub_id: str, revision: str | None, error: BaseException) -> str | None:
    """What an error of the hub means and what to do; ``None`` where it is no error of the hub's."""
    from huggingface_hub import errors

    page, at = f"https://huggingface.co/{hub_id}", f" at revision {revision!r}" if revision else ""
    for cause in _causes(error):
        if isinstance(cause, errors.GatedRepoError):
            return (
                f"{hub_id!r} is gated: its owners ask for consent to their terms. Accept them at {page}, then log in "
                "with `hf auth login` or set HF_TOKEN"
            )
        if isinstance(cause, errors.RevisionNotFoundError):
            return f"{hub_id!r} has no revision {revision!r}; branches, tags and commits are listed at {page}/commits"
        if isinstance(cause, errors.RepositoryNotFoundError):
            return (
                f"there is no model {hub_id!r} on the Hugging Face hub, or it is private; there is no folder of that "
                "name here either. Check the spelling; for a private one log in with `hf auth login` or set HF_TOKEN"
            )
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return (
                f"{hub_id!r}{at} is not in the cache, and HF_HUB_OFFLINE forbids to ask the hub. Unset it, run "
                f"`hf download {hub_id}` where there is a network, or give a folder"
            )
        if isinstance(cause, errors.HfHubHTTPError):
            status = cause.response.status_code if cause.response is not None else "no status"
            return f"the Hugging Face hub could not serve {hub_id!r}{at} (HTTP {status}); try again later"
    if not _no_answer(error):
        return None
    return (
        f"the Hugging Face hub cannot be reached ({_first_line(error)}), and {hub_id!r}{at} is not whole in the cache. "
        "There is no folder of that name here either. Check the network or proxy, or give a folder; bundled models "
        "need no network"
    )


def _no_answer(error: BaseException) -> bool:
    """Whether the hub was not reached at all: forbidden, no connection, or too slow to answer."""
    from huggingface_hub import errors

    causes = list(_causes(error))
    if any(isinstance(cause, errors.HfHubHTTPError) for cause in causes):
        return False
    lost = (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, ConnectionError, TimeoutError)
    return any(isinstance(cause, lost) or _is_transport_error(cause) for cause in causes)


def _is_transport_error(error: BaseException) -> bool:
    """By name, since the hub's client has been built on several packages of httpx, which share it."""
    return any(cls.__name__ == "TransportError" for cls in type(error).__mro__)


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _first_line(error: BaseException) -> str:
    return (str(_causes(error)[-1]).strip().splitlines() or [type(error).__name__])[0]


def _cached_commit(hub_id: str, revision: str | None) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(hub_id, "config.json", revision=revision)
    return Path(config).parent.name if isinstance(config, str) else None
