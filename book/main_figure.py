"""Draw the figures that open the README and the front page from the committed records: `make figure`."""

import os
from pathlib import Path

from topoprune import study
from topoprune.report import figures
from topoprune.report.figures.main_figure import main_figure

BOOK = Path(__file__).resolve().parent
FIGURES = {
    "main_figure.svg": ("study", main_figure),
    "beyond_figure.svg": (study.profile("study").beyond, figures.choices_compared),
}
"""File in `_static` -> the profile that it shows, and what draws it."""


def draw(folder: Path) -> None:
    """Draw the published figures, whatever folder of records the environment names."""
    os.environ.update(TOPOPRUNE_RESULTS=str(BOOK / "results"), TOPOPRUNE_NO_RUN="1")
    figures.style()
    for name, (profile, figure) in FIGURES.items():
        specs = [spec for spec in study.specs(profile) if not isinstance(spec, study.Portrait)]
        figure(study.records(profile, specs)).savefig(folder / name, metadata={"Date": None})


if __name__ == "__main__":
    draw(BOOK / "_static")
