"""Where a model lies: with this package, in a folder, or at one commit of a hub repository."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from segregation.errors import ModelError
from segregation.models.hub import meaning, resolve

WEIGHTS = Path(__file__).parents[1] / "zoo" / "weights"
"""Where the bundled models lie."""


def bundled_models() -> tuple[str, ...]:
    """Names of the models that come with the package."""
    return tuple(sorted(path.parent.name for path in WEIGHTS.glob("*/config.json")))


@dataclass(frozen=True)
class Source:
    """Where a model is read from.

    Attributes:
        name: what was asked for.
        at: a folder, or a hub id.
        commit: the commit of a hub model, whatever branch or tag was asked for; a folder has none.
        reached: where the files come from: a folder, the hub, or what the hub's cache has of it.
    """

    name: str
    at: str
    commit: str | None = None
    reached: Literal["folder", "hub", "cache"] = "folder"

    def options(self) -> dict[str, Any]:
        """What transformers is told, so that every file comes from this one commit."""
        return {"revision": self.commit, "local_files_only": self.reached != "hub"}

    def weights(self) -> Path:
        """The folder that holds the weights, once they have been fetched."""
        if self.reached == "folder":
            return Path(self.at)
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(
                self.at, revision=self.commit, local_files_only=True, allow_patterns=["*.safetensors", "config.json"]
            )
        )

    def unreadable(self, error: OSError) -> ModelError:
        """What to say when transformers could not read this source."""
        first = str(error).strip().splitlines()[0]
        if self.reached == "folder":
            needs = "It needs config.json, *.safetensors and the tokenizer's files"
            return ModelError(f"{self.name!r} cannot be opened: {first}. {needs}")
        return ModelError(
            meaning(self.at, self.commit, error)
            or f"{self.name!r} was found on the Hugging Face hub but cannot be opened: {first}"
        )


def find_source(name_or_path: str | Path, revision: str | None) -> Source:
    """The source that a bundled name, a folder or a hub id stands for.

    Raises:
        ModelError: none of these, a folder that holds no model or is asked for a revision, or a hub that has no such
            model or does not answer.
    """
    name = str(name_or_path)
    folder = WEIGHTS / name if name in bundled_models() else Path(name)
    if folder.is_dir():
        _check_folder(name, folder)
        if revision is not None:
            raise ModelError(f"revision is for models on the hub, got {revision!r} with {name!r}, which is a folder")
        return Source(name, str(folder))
    if isinstance(name_or_path, Path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ModelError(
            f"no model {name!r}: bundled models are {', '.join(bundled_models()) or '(none in this installation)'}; "
            "otherwise give a folder that exists, or a hub id OWNER/NAME"
        )
    commit, reached = resolve(name, revision)
    return Source(name, name, commit, reached)


def _check_folder(name: str, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{name!r} is a folder without config.json; give the folder save_pretrained wrote")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{name!r} has no weights: no *.safetensors file in it. Only safetensors is read; "
            "convert other formats with save_pretrained, or fetch the missing file"
        )
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model")):
        raise ModelError(f"{name!r} has no tokenizer (tokenizer.json or tokenizer.model); save it into the folder")
