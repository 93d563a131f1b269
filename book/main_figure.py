"""Draw the figure that opens the README from the committed records: `make figure`."""

from pathlib import Path

from topoprune import study
from topoprune.report import figures

FILE = Path(__file__).resolve().parent / "_static" / "main_figure.svg"


def draw(file: Path) -> None:
    """Draw the main figure of the published study."""
    figures.style()
    figures.main_figure(study.published_records("study")).savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    draw(FILE)
