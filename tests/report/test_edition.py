"""What an edition of the book rests on."""

import dataclasses
import json
from pathlib import Path

import nbformat
import pytest
from planted import networks

from topoprune import study
from topoprune.report import benchmarks, edition, evidence

BOOK = Path(__file__).parents[2] / "book"
COMMITTED = sorted(benchmarks.RESULTS.glob("*.jsonl"))


def test_the_published_edition_rests_on_every_committed_file_of_records():
    assert {path.stem for path in COMMITTED} == set(edition.profiles("study"))


def test_it_counts_every_committed_record_once():
    stored = [record for path in COMMITTED for record in study.Store(path).load().values()]
    once = {json.dumps([study.Record.from_json(one).key, one["provenance"]], sort_keys=True) for one in stored}
    runs = edition.runs(edition.profiles("study"), benchmarks.RESULTS)
    assert len(runs) == len(once)
    beyond = edition.runs({name: edition.profiles("study")[name] for name in edition.BEYOND}, benchmarks.RESULTS)
    assert {one.key for one in beyond} < {one.key for one in runs}
    assert evidence.hours(study.published_records("beyond-quarter")) < evidence.hours(beyond) < evidence.hours(runs)


@pytest.mark.parametrize("name", ["quick", "pilot"])
def test_an_edition_without_records_of_its_companions_counts_its_own(name, tmp_path):
    assert edition.profiles(name, [0]).keys() == study.with_companions(name).keys()
    assert edition.runs(edition.profiles(name, [0]), tmp_path) == []
    dense = networks(1)[0]
    store = study.Store(tmp_path / f"{name}.jsonl")
    store.append(dense.to_json())
    assert [one.key for one in edition.runs({name: [dense.spec], f"{name}-beyond": [dense.spec]}, tmp_path)] == [
        dense.key
    ]


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    """Run the code of provenance.ipynb on a profile and a folder of records: what it glues, and what it displays."""
    glued, shown = {}, []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOPOPRUNE_NO_RUN", "1")
    monkeypatch.setattr("myst_nb.glue", lambda name, value, display: glued.update({name: value}))
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle["text/markdown"]))
    cells = nbformat.read(BOOK / "provenance.ipynb", as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]

    def run(profile: str, folder: Path) -> tuple[dict, str]:
        monkeypatch.setenv("TOPOPRUNE_RESULTS", str(folder))
        names: dict = {}
        exec(code[0], names)
        names["profile"] = profile
        for cell in code[1:]:
            exec(cell, names)
        return glued, "\n".join(shown)

    return run


def test_the_chapter_counts_and_lists_what_the_edition_rests_on(chapter):
    glued, shown = chapter("study", benchmarks.RESULTS)
    runs = edition.runs(edition.profiles("study"), benchmarks.RESULTS)
    assert glued["provenance_runs"] == glued["provenance_records"] == len(runs)
    assert glued["provenance_hours"] == pytest.approx(evidence.hours(runs))
    assert all(f"`{path.name} <" in shown for path in COMMITTED)


@pytest.mark.parametrize("name", ["quick", "pilot"])
def test_the_chapter_needs_no_companion_on_record(chapter, name, tmp_path):
    dense = dataclasses.replace(networks(1)[0], spec=study.dense_specs(name)[0])
    study.Store(tmp_path / f"{name}.jsonl").append(dense.to_json())
    glued, shown = chapter(name, tmp_path)
    assert glued["provenance_runs"] == 1 and f"{name}.jsonl" in shown and "beyond-choice" not in shown


def test_every_network_of_the_zoo_is_counted_once():
    measured = benchmarks.benchmark(benchmarks.ZOO)
    numbers, table = benchmarks.zoo_numbers(measured), benchmarks.zoo_table(measured)
    assert numbers["networks"] == numbers["pruned"] + numbers["too_large"] + numbers["refused"] == 86
    assert numbers["pruned"] == len(table) == table["network"].nunique() == 84 and numbers["names"] == "none"
    assert (numbers["layers"], numbers["whole"]) == (table["layers"].sum(), table["left whole"].sum())
