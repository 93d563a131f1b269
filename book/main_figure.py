"""Draw the figure that opens the README from the committed records: `make figure`."""

import os
from pathlib import Path

from topoprune import study
from topoprune.report import figures
from topoprune.report.figures.main_figure import main_figure

BOOK = Path(__file__).resolve().parent
FIGURE = BOOK / "_static" / "main_figure.svg"


def draw(path: Path) -> None:
    """Draw the published study, whatever folder of records the environment names."""
    os.environ.update(TOPOPRUNE_RESULTS=str(BOOK / "results"), TOPOPRUNE_NO_RUN="1")
    figures.style()
    records = study.records("study", [*study.dense_specs("study"), *study.trial_specs("study")])
    main_figure(records).savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    draw(FIGURE)
