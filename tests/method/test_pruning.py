"""Prune networks on disk, from the command line."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from topoprune import build, load, prune, save, study
from topoprune.__main__ import main
from topoprune.files import FileError
from topoprune.storage import prune_file


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["prune", "nonsense"], "neither a .safetensors file nor a torchvision model"),
        (["prune", "missing.safetensors"], "missing.safetensors does not exist"),
        (["prune", "resnet18", "--weights", "none", "--ratio", "1"], "ratio must lie in [0, 1)"),
        (["prune", "resnet18", "--weights", "IMAGENET"], "could not load the weights IMAGENET of resnet18"),
        (["prune", "resnet18", "--weights", "x.safetensors"], "could not load the weights x.safetensors of resnet18"),
        (["prune", "x.safetensors", "--layer-ratio", "features.0=abc"], "ratio must be a number or {pattern: number}"),
        (["prune", "x.safetensors", "--option", "seed=1"], "unknown option seed of method 'topological'"),
        (["prune", "x.safetensors", "--option", "types=3"], "unknown option types of method 'topological'"),
        (
            ["prune", "x.safetensors", "--method", "l1", "--option", "engine=NNI"],
            "engine of 'l1' must be 'nni', or left out",
        ),
        (["prune", "resnet18", "--weights", "none", "--classes", "0"], "classes must be at least 1, got 0"),
        (["prune", "resnet18", "--weights", "none", "--images", "nowhere"], "nowhere does not exist: name a folder"),
        (["prune", "x.safetensors", "--classes", "3"], "classes and weights are of torchvision networks"),
        (["prune", "x.safetensors", "--weights", "IMAGENET"], "classes and weights are of torchvision networks"),
    ],
)
def test_the_command_line_answers_a_mistake_in_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_file_may_be_pruned_without_a_download(dense, tmp_path):
    """`--weights none`, which a script gives whatever it prunes, leaves the weights of a file as they are."""
    small = tmp_path / "small.safetensors"
    assert main(["prune", str(dense), "--method", "l1", "--weights", "none", "--output", str(small)]) == 0
    kept, given = load(small), load(dense)
    first = json.loads(small.with_suffix(".json").read_text())["kept"]["features.0"]
    assert torch.equal(kept.features[0].weight, given.features[0].weight[first])


@pytest.fixture
def dense(tmp_path):
    """A file of a small network."""
    source = {"architecture": "vgg16", "classes": 10, "width": 1 / 16}
    save(build(**source), tmp_path / "dense.safetensors", source)
    return tmp_path / "dense.safetensors"


def test_a_wrong_option_of_the_search_is_answered_in_one_line(dense, tmp_path):
    command = [sys.executable, "-m", "topoprune", "prune", dense, "--output", tmp_path / "small.safetensors"]
    done = subprocess.run([*command, "--option", "population=abc"], capture_output=True, text=True)
    assert done.returncode == 2 and not (tmp_path / "small.safetensors").exists()
    assert done.stderr.splitlines()[-1] == "topoprune: error: population must be an integer, got 'abc'"
    assert "Traceback" not in done.stderr


def test_linear_layers_are_pruned_from_the_command_line(dense, tmp_path, capsys):
    output = tmp_path / "small.safetensors"
    assert main(["prune", str(dense), "--output", str(output), "--method", "l1", "--linear"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["types"] == ["Conv2d", "Linear"] and report == json.loads((tmp_path / "small.json").read_text())


def test_a_network_that_was_pruned_on_a_tuple_is_pruned_again(tmp_path):
    source, images = {"architecture": "vgg16", "classes": 10, "width": 1 / 16}, (torch.randn(2, 3, 32, 32),)
    result = prune(build(**source), images, "l1", 0.25)
    save(result.model, tmp_path / "dense.safetensors", source, result.kept, images)
    again, report = prune_file(str(tmp_path / "dense.safetensors"), tmp_path / "small.safetensors", "l1", flops=0.5)
    assert report["shape"] == [3, 32, 32] and report["ratio"] is None and report["flops"] == 0.5
    assert again.before.parameters == result.after.parameters > again.after.parameters
    assert load(tmp_path / "small.safetensors")(images[0]).shape == (2, 10)
    pair = [{"shape": [2, 3, 32, 32], "type": "float32"}] * 2
    save(build(**source), tmp_path / "pair.safetensors", source | {"inputs": pair})
    with pytest.raises(ValueError, match="pair.safetensors takes 2 inputs: prune it in Python"):
        prune_file(str(tmp_path / "pair.safetensors"), tmp_path / "small.safetensors", "l1")


def test_a_file_of_somebody_else_is_not_to_be_deleted(tmp_path, capsys):
    save_file({"weight": torch.ones(3)}, tmp_path / "own.safetensors")
    assert main(["prune", str(tmp_path / "own.safetensors")]) == 2
    error = capsys.readouterr().err
    assert "own.safetensors is no file of topoprune" in error and "delete" not in error
    save(nn.Conv2d(3, 8, 3), tmp_path / "own.safetensors")
    assert main(["prune", str(tmp_path / "own.safetensors")]) == 2
    assert "does not say which network it holds: save it with source" in capsys.readouterr().err
    (tmp_path / "a file").touch()
    with pytest.raises(FileError, match="cannot write .*x.safetensors.*choose another folder, then run again$"):
        save(nn.Conv2d(3, 8, 3), tmp_path / "a file" / "x.safetensors")


def test_an_interrupted_choice_does_not_promise_to_continue(dense, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("topoprune.storage.prune", interrupted)
    assert main(["prune", str(dense)]) == 130
    assert capsys.readouterr().err == "topoprune: interrupted\n"


def test_a_pruned_file_is_a_smaller_network_that_loads(tmp_path, capsys):
    import topoprune

    output = tmp_path / "small.safetensors"
    assert (
        main(
            [
                "prune",
                "resnet18",
                "--weights",
                "none",
                "--method",
                "l1",
                "--ratio",
                "0.5",
                "--shape",
                "3",
                "64",
                "64",
                "--output",
                str(output),
            ]
        )
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "small.json").read_text())
    small = topoprune.load(output).eval()
    with torch.no_grad():
        assert small(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
    assert sum(p.numel() for p in small.parameters()) == report["after"]["parameters"]
    assert report["after"]["flops"] < 0.3 * report["before"]["flops"]


def test_a_dense_checkpoint_can_be_pruned(tiny_study, tmp_path, capsys):
    records = tiny_study.records
    source = tiny_study.cache / "runs" / f"dense-{records[0].key}" / "dense.safetensors"
    assert (
        main(
            [
                "prune",
                str(source),
                "--method",
                "fpgm",
                "--round-to",
                "4",
                "--output",
                str(tmp_path / "small.safetensors"),
            ]
        )
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert {len(kept) % 4 for kept in report["kept"].values()} == {0}
    assert report["before"]["parameters"] == records[0].result["cost"]["parameters"]


def test_a_choice_by_what_channels_compute_is_compensated_on_images(tiny_study, tmp_path, capsys):
    records = tiny_study.records
    source = str(tiny_study.cache / "runs" / f"dense-{records[0].key}" / "dense.safetensors")
    images = study.load_data("digits").example(600)
    save_file({"images": images.contiguous()}, tmp_path / "images.safetensors")
    with pytest.raises(ValueError, match="compensation depends on what the network computes: give images"):
        prune_file(source, tmp_path / "small.safetensors", "l1", compensation="channels")
    answers = {}
    for mode in ([], ["--compensate", "channels"], ["--compensate"]):
        output = str(tmp_path / "small.safetensors")
        choice = ["--option", "space=functional", "--option", "search=merge", "--ratio", "0.3"]
        given = ["--images", str(tmp_path / "images.safetensors")]
        assert main(["prune", source, "--output", output, *choice, *given, *mode]) == 0
        expected = None if not mode else mode[-1].replace("--compensate", "convolution")
        assert json.loads(capsys.readouterr().out).get("compensation") == expected
        answers[tuple(mode)] = load(output).eval()(images)
    dense = load(source).eval()(images)
    errors = [(answer - dense).square().mean().item() for answer in answers.values()]
    assert errors[1] < errors[0] and errors[2] < errors[0]


def test_help_does_not_import_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "topoprune", "--help"], capture_output=True, text=True, check=True
    )
    assert "run" in done.stdout and " torch" not in done.stderr


def test_weights_that_would_run_code_are_refused(tmp_path, monkeypatch):
    """torchvision's cache, whose files it does not check again."""

    class Hostile:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    weights.parent.mkdir(parents=True)
    torch.save({"fc.weight": Hostile()}, weights)
    with pytest.raises(ValueError, match="could not load the weights DEFAULT of resnet18"):
        prune_file("resnet18", tmp_path / "small.safetensors", "l1")
    assert not (tmp_path / "ran").exists()
    torch.load(weights, weights_only=False)
    assert (tmp_path / "ran").exists()  # as it would have


@pytest.mark.parametrize("given", ["model", "images", "weights"])
def test_no_input_is_replaced(given, dense, tmp_path):
    path = tmp_path / "given.safetensors"
    path.write_bytes(dense.read_bytes())
    named = {"model": "resnet18", "images": None, "weights": "none"} | {given: str(path)}
    with pytest.raises(ValueError, match="output would replace its own input"):
        prune_file(output=path, method="l1", **named)
    assert path.read_bytes() == dense.read_bytes()


def test_an_output_that_is_a_folder_costs_no_search(dense, tmp_path):
    (tmp_path / "small.json").mkdir()
    with pytest.raises(FileError, match="small.json is a folder or a device: name a file"):
        prune_file(str(dense), tmp_path / "small.safetensors", "l1")
    assert not (tmp_path / "small.safetensors").exists()


def test_images_in_a_damaged_file_are_refused(dense, tmp_path):
    (tmp_path / "images.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"could not read .*images.safetensors \(SafetensorError"):
        prune_file(str(dense), tmp_path / "small.safetensors", "l1", images=tmp_path / "images.safetensors")
