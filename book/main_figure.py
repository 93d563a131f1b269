"""Draw the figures that open the README from the committed records: `make figure`."""

from pathlib import Path

from topoprune import study
from topoprune.report import figures

BOOK = Path(__file__).resolve().parent
FIGURES = {
    "main_figure.svg": ("study", figures.main_figure),
    "beyond_figure.svg": (study.profile("study").beyond, figures.choices_compared),
}
"""File in `_static` -> the profile that it shows, and what draws it."""


def draw(folder: Path) -> None:
    """Draw the figures from the published records."""
    figures.style()
    for name, (profile, figure) in FIGURES.items():
        figure(study.published_records(profile)).savefig(folder / name, metadata={"Date": None})


if __name__ == "__main__":
    draw(BOOK / "_static")
