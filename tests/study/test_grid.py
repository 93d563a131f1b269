"""Load what is stored, run what is missing: forbidden, forced, failing, side by side, for several profiles."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
from tiny import TINY

from topoprune import files, study
from topoprune.files import FileError, FileWarning
from topoprune.study import Dense, RunError, Trial, provenance
from topoprune.study.datasets import DataError
from topoprune.study.execution import without_times
from topoprune.study.locks import locked
from topoprune.study.run_folder import RECORD, run_folder, run_state


@pytest.fixture(params=["one by one", "side by side"])
def executor(request):
    if request.param == "one by one":
        yield None
    else:
        with ThreadPoolExecutor(2) as pool:
            yield pool


def store(records, name="tiny") -> None:
    for record in records:
        study.records_store(name).append(record.to_json())


def test_what_is_stored_is_not_run_again(tiny_study, monkeypatch):
    monkeypatch.setenv("TOPOPRUNE_RESULTS", str(tiny_study.results))
    stored = {record.key: record for record in study.records("tiny")}
    assert stored == {record.key: record for record in tiny_study.records}  # the seconds they took, too


def test_a_finished_trial_leaves_the_cache_and_a_dense_network_stays(tiny_study):
    left = {path.name for path in (tiny_study.cache / "runs").iterdir() if path.is_dir()}
    assert left == {run_folder(record.spec).name for record in tiny_study.records[:2]}


def test_what_is_missing_is_not_run_where_that_is_forbidden(tiny_study, folders, monkeypatch):
    monkeypatch.setenv("TOPOPRUNE_NO_RUN", "1")
    with pytest.raises(FileError, match="has none of 7 records .*topoprune run --profile tiny"):
        study.records("tiny")
    some = [tiny_study.records[0], tiny_study.records[2]]
    store(some)
    assert study.records("tiny") == some


def test_force_runs_again_and_keeps_the_old_file(tiny_study, trained):
    record = tiny_study.records[2]
    old = dataclasses.replace(record, provenance={"seconds": 1234.5, "commit": "0123"})
    store([old])
    before = study.records_store("tiny").path.read_bytes()
    (again,) = study.records("tiny", [record.spec], force=True)
    assert without_times(again) == without_times(record) and again.provenance != old.provenance
    assert study.records_store("tiny").path.with_suffix(".jsonl.bak").read_bytes() == before


def test_force_is_refused_where_nothing_may_be_run(tiny_study, folders, monkeypatch):
    """It would drop the records and leave nothing."""
    store(tiny_study.records)
    before = study.records_store("tiny").path.read_bytes()
    monkeypatch.setenv("TOPOPRUNE_NO_RUN", "1")
    with pytest.raises(FileError, match="TOPOPRUNE_NO_RUN"):
        study.records("tiny", force=True)
    assert study.records_store("tiny").path.read_bytes() == before
    assert not list((folders / "results").glob("*.bak*"))


def test_what_runs_elsewhere_is_not_forced(tiny_study, folders):
    store(tiny_study.records)
    spec = tiny_study.records[2].spec
    with locked(run_folder(spec)), pytest.raises(FileError, match="l1 at .* runs in another process"):
        study.records("tiny", [spec], force=True)
    assert len(study.records_store("tiny").load()) == 7


def test_a_failing_run_keeps_no_other_from_its_record(tiny_study, trained, executor):
    good = tiny_study.records[2]
    bad = [
        dataclasses.replace(good.spec, options={"colour": "red"}),
        dataclasses.replace(good.spec, options={"colour": "blue"}),
    ]
    wanted = [bad[0], good.spec.dense, good.spec, bad[1]]
    message = r"2 of 4 runs failed, the first: l1 .*, seed 0: ValueError\(.unknown option colour.*the others are stored"
    with pytest.raises(RunError, match=message) as error:
        study.records("tiny", wanted, executor=executor)
    assert isinstance(error.value.__cause__, ValueError)
    assert set(study.records_store("tiny").load()) == {tiny_study.records[0].key, good.key}
    assert run_state(run_folder(bad[1]))["state"] == "failed"


def test_missing_images_end_a_study_at_once(tiny_study, trained, executor, monkeypatch):
    """Every run would fail: there is no point in a line for each."""
    from torchvision.datasets import CIFAR10

    def offline(self):
        raise OSError("no network")

    monkeypatch.setattr(CIFAR10, "download", offline)
    seen = []
    monkeypatch.setattr(study.grid, "run", lambda spec, *others: seen.append(spec) or study.run(spec, *others))
    dense = [dataclasses.replace(tiny_study.records[0].spec, dataset="cifar10", seed=seed) for seed in range(9)]
    with pytest.raises(DataError, match="could not be downloaded"):
        study.records("tiny", dense, executor=executor)
    assert len(seen) < 9


def test_profiles_share_their_runs(tiny_study, trained, monkeypatch):
    other = dataclasses.replace(TINY, seeds=(0,), methods=("l1",))
    monkeypatch.setitem(study.PROFILES, "tiny-ablation", other)
    monkeypatch.setitem(study.PROFILES, "tiny", dataclasses.replace(TINY, ablation="tiny-ablation", methods=("l1",)))
    wanted = study.with_companions("tiny", [0])
    assert {name: len(specs) for name, specs in wanted.items()} == {"tiny": 3, "tiny-ablation": 2}
    del wanted["tiny"][2]  # the portrait
    found = study.records_of_profiles(wanted)
    assert found["tiny"] == found["tiny-ablation"]  # down to the seconds that they took
    assert list(map(without_times, found["tiny"])) == [without_times(tiny_study.records[i]) for i in (0, 2)]
    assert study.companion_records("tiny", "ablation", [0]) == found["tiny-ablation"]
    assert study.companion_records("tiny", "longer") == []


class Noted(ThreadPoolExecutor):
    """Runs nothing: notes the calls of `run`, and gives the records of the tiny study."""

    def __init__(self, tiny_study):
        super().__init__(1)
        self.by_spec, self.calls = {study.spec_key(record.spec): record for record in tiny_study.records}, []

    def submit(self, function, *call):
        self.calls.append(call)
        return super().submit(lambda: self.by_spec[study.spec_key(call[0])])


@pytest.fixture
def noted(tiny_study, folders, monkeypatch):
    monkeypatch.setitem(study.PROFILES, "tiny-ablation", TINY)
    with Noted(tiny_study) as pool:
        yield pool


def test_what_another_profile_holds_is_copied_and_not_run(tiny_study, noted):
    held, lacking = tiny_study.records[:3], tiny_study.records[3]
    store(held, "tiny-ablation")
    store([held[0]])
    some = [record.spec for record in (*held, lacking)]
    found = study.records_of_profiles({"tiny": some, "tiny-ablation": some}, executor=noted)
    assert [call[0] for call in noted.calls] == [lacking.spec]
    assert found["tiny"] == found["tiny-ablation"] == tiny_study.records[:4]
    assert study.records_store("tiny").load() == study.records_store("tiny-ablation").load()


def test_a_profile_that_runs_alone_finds_what_another_holds(tiny_study, noted):
    *held, lacking = tiny_study.records[:4]
    store(held, "tiny-ablation")
    found = study.records("tiny", [record.spec for record in (*held, lacking)], executor=noted)
    assert [call[0] for call in noted.calls] == [lacking.spec] and found == tiny_study.records[:4]


def test_what_is_forced_is_not_copied(tiny_study, noted):
    """Nor does the run find it there; the profile that does not force it keeps its own."""
    record = tiny_study.records[2]
    old = dataclasses.replace(record, provenance={"seconds": 1234.5, "commit": "0123"})
    for name in ("tiny", "tiny-ablation"):
        store([old], name)
    found = study.records_of_profiles({"tiny": [record.spec], "tiny-ablation": []}, force=True, executor=noted)
    assert noted.calls == [(record.spec, None, study.records_store("tiny").path)]
    assert found["tiny"] == [record]
    assert study.records("tiny-ablation", [record.spec]) == [old]


def test_what_was_forced_and_interrupted_is_not_copied_either(tiny_study, noted, monkeypatch):
    """The same command without force continues, and runs it."""
    record = tiny_study.records[2]
    old = dataclasses.replace(record, provenance={"seconds": 1234.5, "commit": "0123"})
    for name in ("tiny", "tiny-ablation"):
        store([old], name)
    with monkeypatch.context() as interrupted, pytest.raises(KeyboardInterrupt):
        interrupted.setattr(noted, "submit", _interrupt)
        study.records("tiny", [record.spec], force=True, executor=noted)
    assert study.records("tiny", [record.spec], executor=noted) == [record] and len(noted.calls) == 1
    assert not list(study.results_folder().glob("*.forced"))  # from now on, copies are welcome again
    assert study.records("tiny-ablation", [record.spec]) == [old]


def _interrupt(*call):
    raise KeyboardInterrupt


def test_a_dense_network_on_which_other_records_rest_is_not_forced_with_a_part(tiny_study, noted):
    dense, trial, other = tiny_study.records[0], tiny_study.records[2], tiny_study.records[3]
    store([dense, trial, other])
    some = [dense.spec, trial.spec]
    assert study.records("tiny", some, force=True, executor=noted) == [dense, trial]
    assert [call[0] for call in noted.calls] == [trial.spec]
    study.records("tiny", [*some, other.spec], force=True, executor=noted)
    assert [call[0] for call in noted.calls[1:]] == [dense.spec, trial.spec, other.spec]


def test_records_of_two_dense_networks_of_a_seed_are_no_pairs(tiny_study, folders):
    dense, trial = tiny_study.records[0], tiny_study.records[2]
    store([dense, dataclasses.replace(trial, result={**trial.result, "network": "0" * 16})])
    with pytest.raises(FileError, match="tiny.jsonl: l1 .* another dense network .* --profile tiny --seeds 0 --force"):
        study.records("tiny", [dense.spec, trial.spec])


def test_a_network_on_the_record_of_another_profile_is_known(tiny_study, trained, monkeypatch):
    monkeypatch.setitem(study.PROFILES, "tiny-ablation", TINY)
    dense, trial = tiny_study.records[0], tiny_study.records[2]
    store([dataclasses.replace(dense, result={**dense.result, "network": "0" * 16})], "tiny-ablation")
    with pytest.raises(RunError, match="is not the one on record"):
        study.records_of_profiles({"tiny": [trial.spec], "tiny-ablation": [dense.spec]})


@pytest.mark.parametrize(
    "device, message",
    [
        ("foo", "device must be cpu, cuda or cuda:N, got 'foo'"),
        ("cuda:", "device must be cpu, cuda or cuda:N, got 'cuda:'"),
        ("cuda", "there is no device 'cuda', PyTorch finds 0 CUDA devices here: name another, as cpu, or install a"),
        ("cuda:1", "there is no device 'cuda:1', PyTorch finds 0 CUDA devices"),
    ],
)
def test_a_device_that_is_not_there_is_refused_once(tiny_study, trained, monkeypatch, device, message):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    store(tiny_study.records[2:3])
    for force in (False, True):
        with pytest.raises(ValueError, match=message):
            study.records("tiny", [record.spec for record in tiny_study.records[2:4]], device, force)
    assert not run_folder(tiny_study.records[3].spec).exists()  # no note of a failure
    assert study.records("tiny", [tiny_study.records[2].spec], device) == tiny_study.records[2:3]  # nothing is to run


def test_a_cluster_may_have_devices_that_this_machine_lacks(tiny_study, noted, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    study.records("tiny", [tiny_study.records[2].spec], "cuda:3", executor=noted)
    assert noted.calls[0][1] == "cuda:3"
    with pytest.raises(ValueError, match="got 'foo'"):
        study.records("tiny", [tiny_study.records[3].spec], "foo", executor=noted)


def test_a_results_folder_that_cannot_be_written_is_named_before_the_first_run(tiny_study, trained, monkeypatch):
    spec = tiny_study.records[2].spec
    (trained / "file").write_text("")
    for path, reason in [("file", "file is a file"), ("file/within", "Not a directory")]:
        monkeypatch.setenv("TOPOPRUNE_RESULTS", str(trained / path))
        message = rf"cannot write .*tiny.jsonl \(.*{reason}\): name a folder .* in TOPOPRUNE_RESULTS"
        with pytest.raises(FileError, match=message):
            study.records("tiny", [spec])
    (trained / "folder" / "tiny.jsonl").mkdir(parents=True)
    monkeypatch.setenv("TOPOPRUNE_RESULTS", str(trained / "folder"))
    with pytest.raises(FileError, match=r"cannot read .*tiny.jsonl \(Is a directory\): .* in TOPOPRUNE_RESULTS"):
        study.records("tiny", [spec])
    assert not run_folder(spec).exists()


def test_the_dense_network_of_a_trial_is_trained_first(tiny_study, folders):
    """Side by side, two trials of a network that is missing would wait for each other."""
    begun = []

    class Pool(ThreadPoolExecutor):
        def submit(self, function, spec, *others):
            begun.append(spec)
            return super().submit(lambda: next(record for record in tiny_study.records if record.spec == spec))

    with Pool(2) as pool:
        study.records("tiny", reversed(study.specs("tiny")), executor=pool)
    assert begun[:2] == [record.spec for record in reversed(tiny_study.records[:2])]
    for spec in begun[2:]:
        assert begun.index(spec.dense) < begun.index(spec)
    assert len(begun) == 7


def test_runs_keep_their_order_whichever_dense_network_is_finished_first(tiny_study, trained):
    """The first ratios of all networks come before the others, also where one network is finished long before."""
    wanted, begun = study.specs("tiny"), []

    class Pool(ThreadPoolExecutor):
        def submit(self, function, spec, *others):
            begun.append(spec)
            future = super().submit(lambda: next(record for record in tiny_study.records if record.spec == spec))
            future.result()
            return future

    with Pool(1) as pool:
        study.records_of_profiles({"tiny": wanted}, executor=pool, at_once=1)
    pruned = [spec for spec in wanted if not isinstance(spec, Dense)]
    assert [spec for spec in begun if not isinstance(spec, Dense)] == pruned and len(begun) == len(wanted)


@pytest.fixture
def dirty_checkout(folders, monkeypatch):
    """The code has changes that are not committed, and the test's own results are the published ones."""
    monkeypatch.setattr(provenance, "PUBLISHED", folders / "results")
    monkeypatch.setattr(provenance, "commit_of", lambda checkout: "0123-dirty")
    provenance.commit.cache_clear()
    yield
    provenance.commit.cache_clear()


def test_published_records_are_not_run_from_changed_code(tiny_study, trained, dirty_checkout, monkeypatch):
    spec = tiny_study.records[2].spec
    with pytest.raises(FileError, match="holds published records"):
        study.records("tiny", [spec])
    assert not run_folder(spec).exists()  # nothing was spent on it
    monkeypatch.setenv("TOPOPRUNE_ALLOW_DIRTY", "1")
    (record,) = study.records("tiny", [spec])
    assert record.provenance["commit"] == "0123-dirty"
    assert study.records("tiny", [spec]) == [record]


def test_a_record_of_changed_code_in_the_cache_is_made_again(tiny_study, trained, dirty_checkout, monkeypatch):
    """A worker finished it, and its study refused it."""
    record = tiny_study.records[2]
    made = dataclasses.replace(record, provenance={**record.provenance, "commit": "4567-dirty"})
    monkeypatch.setattr(provenance, "commit_of", lambda checkout: "0123")
    files.write_json(run_folder(record.spec) / RECORD, record.key, made.to_json())
    with pytest.warns(FileWarning, match=r"record.json is of changed code \(4567-dirty\) .*record.json.refused"):
        (again,) = study.records("tiny", [record.spec])
    assert again.provenance["commit"] == "0123" and without_times(again) == without_times(record)


def test_a_dense_network_of_changed_code_is_trained_again_to_be_published(
    tiny_study, folders, dirty_checkout, monkeypatch
):
    spec = tiny_study.records[0].spec
    monkeypatch.setenv("TOPOPRUNE_RESULTS", str(folders / "own"))
    (own,) = study.records("tiny", [spec])
    assert own.provenance["commit"] == "0123-dirty"
    monkeypatch.setenv("TOPOPRUNE_RESULTS", str(folders / "results"))
    monkeypatch.setattr(provenance, "commit_of", lambda checkout: "0123")
    provenance.commit.cache_clear()
    with pytest.warns(FileWarning, match=r"dense.safetensors is of changed code \(0123-dirty\)"):
        (published,) = study.records("tiny", [spec])
    assert published.provenance["commit"] == "0123" and without_times(published) == without_times(own)


def test_a_worker_with_changed_code_publishes_nothing(tiny_study, trained, dirty_checkout, monkeypatch):
    monkeypatch.setattr(provenance, "commit_of", lambda checkout: "0123")

    class Cluster(ThreadPoolExecutor):
        def submit(self, function, *arguments):
            record = tiny_study.records[2]
            made = dataclasses.replace(record, provenance={**record.provenance, "commit": "4567-dirty"})
            return super().submit(lambda: made)

    with Cluster(1) as pool, pytest.raises(FileError, match="published .* commit 4567"):
        study.records("tiny", [tiny_study.records[2].spec], executor=pool)
    assert not study.records_store("tiny").load()


def test_records_lie_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("TOPOPRUNE_RESULTS", str(tmp_path))
    assert study.records_store("quick").path == tmp_path / "quick.jsonl"
    monkeypatch.delenv("TOPOPRUNE_RESULTS")
    assert study.results_folder() == provenance.PUBLISHED


def test_a_trial_whose_network_is_missing_trains_it(tiny_study, folders):
    spec = tiny_study.records[2].spec
    assert isinstance(spec, Trial)
    (record,) = study.records("tiny", [spec])
    assert without_times(record) == without_times(tiny_study.records[2])
