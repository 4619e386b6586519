"""`diffractory steer`: scores of images as they arrive, and what is wrong with the others."""

import json
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from diffractory.cli import main
from diffractory.experiment.geometry import Geometry, Grid
from diffractory.experiment.steering import HEADER, Score, Scorer, line, steer, summary
from diffractory.models.c_vae import CVae
from diffractory.models.wide_resnet import WideResNet
from diffractory.store import InputError

CLASSES = ["pristine_2h", "phonons_2h", "strained_1t"]
SHAPE, PIXEL, STOP = [33, 33], 0.08, 0.15
GRID = Grid((33, 33), PIXEL, STOP)
CLASSIFIER = {"channels": [4, 4, 8], "kernel": 3, "pool": 3, "dropout": 0.0}
AUTOENCODER = {"image_size": 32, "channels": [4, 8], "latent": 4, "kl_weight": 1.0}


def save(folder, name, network, settings, classes, **changes):
    folder.mkdir(parents=True)
    hparams = {"model": name, "network": settings, "classes": classes, "image_shape": SHAPE}
    hparams |= {"pixel_size": PIXEL, "beam_stop": STOP} | changes
    (folder / "hparams.json").write_text(json.dumps(hparams))
    save_file(network.state_dict(), folder / "model.safetensors")


def classifier(seed):
    torch.manual_seed(seed)
    network = WideResNet(SHAPE, len(CLASSES), **CLASSIFIER)
    network.normalize_with(torch.from_numpy(GRID.lit.astype(np.float32)))
    return network.eval()


def autoencoder():
    torch.manual_seed(3)
    network = CVae(**AUTOENCODER)
    network.normalize_with(torch.full(SHAPE, 4.0))
    ends = network.latent(torch.from_numpy(np.stack([image(1), image(2)])))
    network.ends.copy_(ends.detach())
    return network.eval()


def image(seed):
    return GRID.normalized(np.random.default_rng(seed).gamma(2, 1, SHAPE))


@pytest.fixture
def models(tmp_path):
    """Return a folder with three small networks of random weights."""
    folder = tmp_path / "models"
    save(folder / "cnn_syn", "wide_resnet", classifier(1), CLASSIFIER, CLASSES)
    save(folder / "cnn_exp", "wide_resnet", classifier(2), CLASSIFIER, CLASSES)
    save(folder / "c_vae", "c_vae", autoencoder(), AUTOENCODER, ["2h", "1t"])
    return folder


@pytest.fixture
def folder(tmp_path):
    """Return a folder of four images, of which the second is broken."""
    folder = tmp_path / "images"
    folder.mkdir()
    np.save(folder / "1.npy", image(1))
    (folder / "2.png").write_bytes(b"no image")
    Image.fromarray((1000 * image(2)).astype(np.uint16)).save(folder / "3.tif")
    np.save(folder / "4.npy", image(7)[:20])
    (folder / "notes.txt").touch()
    np.save(folder / ".5.npy", image(1))
    return folder


def run(monkeypatch, capsys, *arguments):
    """Run a command in this process; return its rows, what it says besides, and its exit code."""
    monkeypatch.setattr(sys, "argv", ["diffractory", "steer", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    return [text.split("\t") for text in out.splitlines()], err, end.value.code


def test_each_image_gets_a_line_and_a_bad_one_says_what_is_wrong(
    models, folder, monkeypatch, capsys
):
    rows, err, code = run(monkeypatch, capsys, folder, "--models", models)
    assert not code
    assert tuple(rows[0]) == HEADER
    table = [dict(zip(HEADER, row, strict=True)) for row in rows[1:]]
    assert [row["file"] for row in table] == ["1.npy", "2.png", "3.tif", "4.npy"]
    assert [bool(row["error"]) for row in table] == [False, True, False, True]
    assert table[1]["error"].startswith("unreadable: ")
    assert table[3]["error"] == "shape: 20 x 33 pixels, not 33 x 33, and no pixel size"
    assert "2 images scored, 2 not" in err
    assert "99th percentile" in err
    with torch.inference_mode():
        expected = classifier(2).probabilities(torch.from_numpy(image(1))[None])[0]
    assert table[0]["class"] == CLASSES[int(expected.argmax())]
    assert float(table[0]["probability"]) == pytest.approx(float(expected.max()), abs=2e-4)
    # Both images are the ends of the line, but for the rounding of the second to whole counts.
    assert float(table[0]["distance"]) == pytest.approx(0, abs=1e-3)
    assert float(table[2]["distance"]) == pytest.approx(0, abs=1e-2)
    assert float(table[0]["latency_ms"]) > 0


def test_near_is_within_half_of_the_length_of_the_line(models):
    scorer = Scorer(models, Geometry())
    ends, points = autoencoder().ends, {}
    assert scorer.corridor == pytest.approx(float((ends[1] - ends[0]).norm()))
    for name, share in {"near": 0.49, "off": 0.51}.items():
        scorer._look = lambda image, share=share: ("1t", 1.0, share * scorer.corridor)
        path = models / f"{name}.npy"
        np.save(path, image(1))
        points[name] = scorer.score(path).side
    assert points == {"near": "near", "off": "off"}


def test_the_classifier_of_the_experiment_is_taken_if_it_is_there(models, folder):
    found = []
    for name in ("cnn_exp", "cnn_syn"):
        score = Scorer(models, Geometry()).score(folder / "1.npy")
        found.append(score.probability)
        (models / name / "hparams.json").unlink()
    expected = [classifier(n).probabilities(torch.from_numpy(image(1))[None]).max() for n in (2, 1)]
    assert found == pytest.approx([p.item() for p in expected], abs=2e-4)
    with pytest.raises(InputError, match="no cnn_exp or cnn_syn: train it"):
        Scorer(models, Geometry())


def test_other_pixels_than_those_of_the_networks_are_resampled(models, tmp_path):
    fine = np.repeat(np.repeat(image(1), 4, axis=0), 4, axis=1)
    folder = tmp_path / "fine"
    folder.mkdir()
    np.save(folder / "a.npy", np.pad(fine, ((10, 0), (0, 6))))
    geometry = Geometry(PIXEL / 4, (10 + 65.5, 65.5))
    (score,) = steer(folder, Scorer(models, geometry), watch=False)
    assert not score.error
    assert score.side == "near"
    (score,) = steer(folder, Scorer(models, Geometry(PIXEL / 8, (75, 65))), watch=False)
    assert score.error.startswith("too_small: reaches ")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: (m / "c_vae" / "hparams.json").unlink(), "has no c_vae"),
        (lambda m: (m / "c_vae" / "model.safetensors").write_text("x"), "c_vae does not hold"),
        (lambda m: (m / "cnn_exp" / "hparams.json").write_text("{}"), "cnn_exp does not hold"),
    ],
)
def test_missing_and_broken_networks_are_named(models, change, match):
    change(models)
    with pytest.raises(InputError, match=match):
        Scorer(models, Geometry())


def test_networks_of_different_pixels_are_refused(models):
    path = models / "c_vae" / "hparams.json"
    path.write_text(path.read_text().replace('"pixel_size": 0.08', '"pixel_size": 0.07'))
    with pytest.raises(InputError, match="different pixels"):
        Scorer(models, Geometry())


def test_a_folder_without_images_is_one_sentence(models, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    for name, match in {"empty": "has no image", "nowhere": "nowhere"}.items():
        _, err, code = run(monkeypatch, capsys, tmp_path / name, "--models", models)
        assert (code, match in err) == (2, True)
    _, err, code = run(monkeypatch, capsys, tmp_path, "--models", models, "--centre", "3", "4")
    assert (code, "needs the pixel size" in err) == (2, True)


def test_lines_for_programs_hold_no_more_tabs_and_line_breaks_than_they_should():
    score = Score("a\tb.png", error="two\nlines")
    assert line(score.fields, aligned=False) == "a b.png\t\t\t\t\t\ttwo lines"
    assert line(HEADER, aligned=True).split() == list(HEADER)
    assert summary([score]) == "0 images scored, 1 not"
    scores = [Score("a", "x", 1, 1, "near", latency) for latency in (10.0, 30.0)]
    assert summary([*scores, score]) == (
        "2 images scored, 1 not; 50.0 frames/s, latency 20.0 ms in the median and 29.8 ms at the "
        "99th percentile"
    )


def test_watching_sees_images_that_arrive_and_those_that_were_not_whole(models, folder):
    command = ["diffractory", "steer", folder, "--models", models, "--watch"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        alarm = threading.Timer(120, process.kill)
        alarm.start()
        try:
            first = [process.stdout.readline().split("\t")[0] for _ in range(5)]
            assert first == ["file", "1.npy", "2.png", "3.tif", "4.npy"]
            np.save(folder / "0.npy", image(4))
            late = process.stdout.readline().split("\t")
            assert late[0] == "0.npy"
            assert late[1] in CLASSES
            Image.fromarray((1000 * image(2)).astype(np.uint16)).save(folder / "2.png")
            again = process.stdout.readline().split("\t")
            assert again[0] == "2.png"
            assert again[1] in CLASSES
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=300)
        finally:
            alarm.cancel()
            process.kill()
    assert out == ""
    assert "4 images scored, 2 not" in err
    assert process.returncode == 0


def test_an_image_is_not_read_while_it_grows(models, tmp_path):
    folder = tmp_path / "growing"
    folder.mkdir()
    np.save(tmp_path / "whole.npy", image(1))
    content = (tmp_path / "whole.npy").read_bytes()
    scores, looks = steer(folder, Scorer(models, Geometry()), watch=True), []

    def sleep(seconds):
        looks.append(seconds)
        assert len(looks) < 20
        if len(looks) <= 5:
            (folder / "a.npy").write_bytes(content[: len(content) * len(looks) // 5])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", sleep)
        score = next(scores)
    assert not score.error
    assert len(looks) >= 5
