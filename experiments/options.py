"""What every experiment is given, and how its run folder is opened."""

from dataclasses import dataclass
from pathlib import Path

import segregation as sg
from segregation.runs.fill import open_run
from segregation.runs.store import RunFolder


@dataclass(frozen=True)
class Common:
    """Options that every experiment has.

    Attributes:
        model: bundled name, folder or hub id.
        max_new_tokens: new tokens per sample (the paper's number); the needles of the grids are shorter.
        batch_size: rows decoded together.
        device: where the model goes, "cpu" or "cuda".
        runs: the folder that run folders go to.
        resume: go on with the run that is there.
    """

    model: str = "tiny-recurrentgemma"
    max_new_tokens: int = 40
    batch_size: int | None = None
    device: str = "cpu"
    runs: Path = Path("runs")
    resume: bool = False

    @property
    def model_name(self) -> str:
        """The model's name without the folder or owner it comes from."""
        return Path(self.model).name

    def start(self, experiment: str) -> tuple[sg.HybridModel, RunFolder]:
        """The model, and the run folder of an experiment on it."""
        model = sg.load_model(self.model, device_map=self.device)
        return model, open_run(self.runs, f"{self.model_name}-{experiment}", model, self, resume=self.resume)
