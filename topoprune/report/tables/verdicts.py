"""The verdicts as a table and as cards of the front page."""

import pandas as pd

from topoprune.report.evidence.claims import NOT_SUPPORTED, SUPPORTED

CARD_CLASSES = {SUPPORTED: "verdict-supported", NOT_SUPPORTED: "verdict-not-supported"}
"""Verdict -> class of its card in the style sheet; others have no colour."""

IN_WORDS = ["claim", "name", "verdict", "tested", "effect", "interval", "seeds", "tally", "command", "cells"]


def verdict_table(verdicts: pd.DataFrame) -> pd.DataFrame:
    """A row for each test: claim (number and name), verdict, effect, interval.

    Args:
        verdicts: rows of `evidence.verdicts` or `evidence.beyond_verdicts`.
    """
    names = verdicts["claim"] + " · " + verdicts["name"]
    return verdicts.assign(claim=names)[["claim", "verdict", "effect", "interval"]]


def verdicts_in_words(verdicts: pd.DataFrame) -> pd.DataFrame:
    """All columns that are text: what was tested, how, and the command that repeats it."""
    return verdicts[[name for name in IN_WORDS if name in verdicts]]


def verdict_cards(verdicts: pd.DataFrame, page: str) -> str:
    """MyST of a grid of cards, one for each claim: its verdict, and effect and interval of its first test.

    Args:
        verdicts: rows of `evidence.verdicts` or `evidence.beyond_verdicts`.
        page: reference to the page that a card opens.
    """
    cards = [_card(row, page) for row in verdicts.drop_duplicates("claim").to_dict("records")]
    return "\n".join(["::::{grid} 1 2 2 3", ":gutter: 2", ":class-container: verdict-cards", "", *cards, "::::"])


def _card(row: dict, page: str) -> str:
    lines = [
        f":::{{grid-item-card}} {row['claim']} · {row['name']}",
        f":link: {page}",
        ":link-type: ref",
        f":class-card: verdict {CARD_CLASSES.get(row['verdict'], '')}".rstrip(),
        "",
        f"**{row['verdict']}**",
        "",
        f"{row['effect']}; interval {row['interval']}" if row["effect"] else "nothing on record",
        *(["", row["tally"]] if isinstance(row.get("tally"), str) else []),
        ":::",
    ]
    return "\n".join(lines)
