"""Training of image networks: exact after a kill, and the same whoever shares the work."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from diffractory.evaluation.image_predictions import evaluate_image_network
from diffractory.models.c_vae import distance_to_line
from diffractory.store import InputError
from diffractory.store.images import ImageReader, write_images
from diffractory.training.fit import ended, epochs_so_far
from diffractory.training.image_networks import load_image_network
from diffractory.training.image_training import ImageTraining, train_image_network
from diffractory.training.images import ImageBatches, half_turned, read_samples

HARDWARE = {
    "device": "cpu",
    "devices": 1,
    "nodes": 1,
    "precision": "32-true",
    "threads": 1,
    "workers": 0,
    "data_memory": 1.0,
}
TWO = HARDWARE | {"devices": 2}
CLASSES = [f"kind_{k}" for k in range(5)] + ["2h", "1t"]
SIZE = 21
NETWORKS = {
    "wide_resnet": {"channels": [4, 8, 8], "kernel": 3, "pool": 3, "dropout": 0.1},
    "c_vae": {"image_size": 16, "channels": [4, 8], "latent": 3, "kl_weight": 1.0},
}
TRAINING = {
    "epochs": 3,
    "batch_size": 10,
    "accumulate": 1,
    "optimizer": "adam",
    "momentum": 0.0,
    "learning_rate": 0.003,
    "weight_decay": 0.0,
    "schedule": "constant",
    "patience": 9,
    "target_accuracy": None,
    "rotate": True,
}


def write_data(folder, not_finite=None, seed=0):
    """Write a store of 12 images of each of 7 kinds: 4 spots, and 2 more that tell the kind."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2

    def spots(angle, radius):
        where = [(radius * np.cos(a), radius * np.sin(a)) for a in (angle, angle + np.pi)]
        return sum(np.exp(-((x - u) ** 2 + (y - v) ** 2) / 2) for u, v in where)

    reference = 5 * (spots(0.2, 6) + spots(1.7, 6))
    splits = ["train"] * 7 + ["validation"] * 2 + ["test"] * 3
    rows, blocks = [], []
    for number, split in enumerate(splits):
        for k, kind in enumerate(CLASSES):
            rows.append((f"{split}/{kind}/{number}", kind, split, "{}"))
            noise = 0.5 * rng.uniform(0, 1, (SIZE, SIZE))
            blocks.append(reference + 4 * spots(np.pi * k / 7, 8.0) + noise)
    if not_finite is not None:
        blocks[not_finite][:] = np.nan
    attributes = {"pixel_size": 0.1, "beam_stop": 0.15}
    write_images(
        folder / "images", len(rows), [np.stack(blocks)], reference, attributes, np.float16
    )
    samples = pd.DataFrame(rows, columns=["sample", "kind", "split", "drawn"])
    samples.to_parquet(folder / "images.samples.parquet")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def inputs_of(data):
    return data / "images", data / "images.samples.parquet"


def train(
    data, folder, name="wide_resnet", hardware=HARDWARE, minutes=None, start=None, classes=CLASSES,
    network=None, **how,
):  # fmt: skip
    model = folder / name
    settings = {"network": NETWORKS[name] | (network or {}), "training": TRAINING | how}
    train_image_network(
        name, *inputs_of(data), model, classes, settings, hardware, 1, minutes, start
    )
    return model


def contents(model):
    names = ["model.safetensors", "hparams.json", "architecture.json", "metrics.csv"]
    return {name: (model / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    return train(data, tmp_path_factory.mktemp("trained"), epochs=25, learning_rate=0.01)


@pytest.fixture(scope="module")
def autoencoder(data, tmp_path_factory):
    return train(data, tmp_path_factory.mktemp("trained"), "c_vae", epochs=4)


def test_a_network_learns_kinds_that_are_easily_told_apart(data, trained, tmp_path):
    predictions, run = tmp_path / "p.parquet", tmp_path / "p.run.json"
    evaluate_image_network(trained, *inputs_of(data), predictions, run, ["test"], HARDWARE, 1)
    table = pd.read_parquet(predictions)
    probabilities = [f"probability_{kind}" for kind in CLASSES]
    assert list(table) == ["sample", "kind", "predicted", *probabilities]
    assert (table["predicted"] == table["kind"]).mean() > 0.9
    assert len(table) == 21
    assert table["sample"].str.startswith("test/").all()
    assert (table["sample"].str.split("/").str[1] == table["kind"]).all()
    probability = table[probabilities].to_numpy()
    assert probability.sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    assert (np.array(CLASSES)[probability.argmax(axis=1)] == table["predicted"]).all()
    assert json.loads(run.read_text())["facts"]["images"] == 21


def test_predictions_are_those_of_the_network_image_by_image(data, trained, tmp_path):
    evaluate_image_network(
        trained, *inputs_of(data), tmp_path / "p.parquet", tmp_path / "p.run.json",
        ["validation", "test"], HARDWARE, 1,
    )  # fmt: skip
    table = pd.read_parquet(tmp_path / "p.parquet")
    samples = read_samples(*inputs_of(data), ["validation", "test"])
    assert table["sample"].tolist() == samples["sample"].tolist()
    network, hparams = load_image_network(trained)
    reader = ImageReader(data / "images")
    for row in (0, 17, 34):
        image = torch.from_numpy(reader.read(samples["pattern"].to_numpy()[[row]]))
        with torch.inference_mode():
            expected = network.probabilities(image)[0].numpy()
        found = table.loc[row, [f"probability_{kind}" for kind in hparams["classes"]]]
        assert found.to_numpy(dtype=float) == pytest.approx(expected, abs=1e-4)


def test_predictions_for_an_experiment_keep_times_and_splits(data, trained, tmp_path):
    images, samples = inputs_of(data)
    table = pd.read_parquet(samples).assign(time=np.arange(84) / 2, scan=1)
    table["kind"] = "unknown"
    table.to_parquet(tmp_path / "experiment.parquet")
    evaluate_image_network(
        trained, images, tmp_path / "experiment.parquet", tmp_path / "p.parquet",
        tmp_path / "p.run.json", ["train", "validation", "test"], HARDWARE, 1,
    )  # fmt: skip
    found = pd.read_parquet(tmp_path / "p.parquet")
    columns = ["sample", "kind", "time", "scan", "split"]
    pd.testing.assert_frame_equal(found[columns], table[columns])


def test_the_model_folder_says_all_that_inference_needs(data, trained):
    hparams = json.loads((trained / "hparams.json").read_text())
    assert hparams["model"] == "wide_resnet"
    assert hparams["network"] == NETWORKS["wide_resnet"]
    assert hparams["classes"] == CLASSES
    assert hparams["image_shape"] == [SIZE, SIZE]
    assert (hparams["pixel_size"], hparams["beam_stop"]) == (0.1, 0.15)
    network, _ = load_image_network(trained)
    reference = ImageReader(data / "images").reference
    assert np.array_equal(network.reference.numpy(), reference)
    blocks = {b["name"]: b for b in json.loads((trained / "architecture.json").read_text())}
    assert blocks["stem"]["inputs"] == [[2, SIZE, SIZE]]
    assert blocks["classifier"]["outputs"] == [[7]]
    assert list(trained.glob("events.*"))
    assert (trained / "last.ckpt").exists()
    run = json.loads((trained / "run.json").read_text())
    assert run["facts"]["training_images"] == 49
    assert run["stage"] == "train_wide_resnet"


def test_the_autoencoder_knows_the_mean_vectors_of_both_phases(data, autoencoder, tmp_path):
    network, hparams = load_image_network(autoencoder)
    reader = ImageReader(data / "images")
    samples = read_samples(*inputs_of(data), ["train"])
    for end, kind in enumerate(["2h", "1t"]):
        patterns = samples.loc[samples["kind"] == kind, "pattern"].to_numpy()
        with torch.inference_mode():
            mean = network.latent(torch.from_numpy(reader.read(patterns))).mean(0)
        assert hparams["means"][kind] == pytest.approx(mean.tolist(), abs=1e-4)
        assert network.ends[end].tolist() == pytest.approx(hparams["means"][kind])
    predictions = tmp_path / "p.parquet"
    run = tmp_path / "p.run.json"
    evaluate_image_network(autoencoder, *inputs_of(data), predictions, run, ["test"], HARDWARE, 1)
    table = pd.read_parquet(predictions)
    latent = [f"latent_{i}" for i in range(3)]
    assert list(table) == ["sample", "kind", *latent, "distance", "reconstruction_error"]
    z = torch.from_numpy(table[latent].to_numpy(np.float32))
    distance = distance_to_line(z, *(torch.tensor(hparams["means"][kind]) for kind in ("2h", "1t")))
    assert table["distance"].to_numpy() == pytest.approx(distance.numpy(), abs=1e-4)
    test = read_samples(*inputs_of(data), ["test"])
    assert table["sample"].tolist() == test["sample"].tolist()
    images = torch.from_numpy(reader.read(test["pattern"].to_numpy()))
    with torch.inference_mode():
        error = (network(images) - network.scaled(images)).square().mean((1, 2, 3))
        assert network.score(images).numpy() == pytest.approx(distance.numpy(), abs=1e-4)
    assert table["reconstruction_error"].to_numpy() == pytest.approx(error.numpy(), rel=1e-3)


def test_the_autoencoder_learns_to_reconstruct(autoencoder):
    metrics = pd.read_csv(autoencoder / "metrics.csv")
    assert metrics["validation_loss"].iloc[-1] < 0.9 * metrics["validation_loss"].iloc[0]
    assert {"reconstruction_error", "kl_divergence"} < set(metrics)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_killed_training_ends_as_an_undisturbed_one(data, tmp_path, name):
    """Kill it for real, after its first checkpoint, and train again."""
    how = {"schedule": "cosine", "accumulate": 2, "optimizer": "sgd", "momentum": 0.5}
    how["learning_rate"] = 1e-4
    whole = train(data, tmp_path / "whole", name, **how)
    script = f"""
import sys, time
sys.path[:0] = {[str(Path(__file__).parent)]!r}
from pathlib import Path
import test_image_networks as t
from diffractory.training.fit import Training

save = Training.on_save_checkpoint

def stop_after_second(self, checkpoint):
    save(self, checkpoint)
    if len(self.epochs) == 3:
        print("ready", flush=True)
        time.sleep(60)

Training.on_save_checkpoint = stop_after_second
t.train(Path({str(data)!r}), Path({str(tmp_path / "killed")!r}), {name!r}, **{how!r})
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / name).exists()
    (state,) = (tmp_path / "killed" / f"{name}.training").iterdir()
    assert len(epochs_so_far(state)) == 2
    assert contents(train(data, tmp_path / "killed", name, **how)) == contents(whole)
    assert not state.parent.exists()


def test_results_do_not_depend_on_workers_nor_on_where_images_are_held(data, tmp_path):
    memory = contents(train(data, tmp_path / "0"))
    disk = contents(train(data, tmp_path / "1", hardware=HARDWARE | {"data_memory": 0.0}))
    several = HARDWARE | {"data_memory": 0.0, "workers": 2}
    workers = contents(train(data, tmp_path / "2", hardware=several))
    assert memory == disk == workers


@pytest.mark.parametrize("name", NETWORKS)
def test_two_processes_train_as_one(data, tmp_path, name):
    """But for what they draw: batches are of 10 and 9 images, and so the shares differ too."""
    how = {"rotate": False, "optimizer": "sgd", "learning_rate": 1e-3, "epochs": 2}
    network = {"dropout": 0.0} if name == "wide_resnet" else None
    one = train(data, tmp_path / "one", name, network=network, **how)
    two = train(data, tmp_path / "two", name, TWO, network=network, **how)
    metrics = [pd.read_csv(model / "metrics.csv") for model in (one, two)]
    # The latent vectors of an autoencoder are drawn, which its first steps hardly feel.
    tolerance = 1e-4 if name == "wide_resnet" else 0.05
    pd.testing.assert_frame_equal(*metrics, rtol=tolerance)
    if name == "wide_resnet":
        a, b = (load_file(model / "model.safetensors") for model in (one, two))
        assert a.keys() == b.keys()
        a, b = (np.concatenate([v[key].ravel() for key in v]) for v in (a, b))
        assert np.linalg.norm(b - a) < 1e-5 * np.linalg.norm(a)
    assert (two / "hparams.json").exists()


def batches_of(data, size=10, shuffle=True, in_memory=True):
    samples = read_samples(*inputs_of(data), ["train"])
    return ImageBatches(data / "images", samples, CLASSES, size, 1, shuffle, in_memory), samples


def test_each_pass_has_every_image_once_in_an_order_of_its_own(data):
    batches, samples = batches_of(data)
    assert len(batches) == 5
    passes = [[batches[k] for k in range(5 * p, 5 * p + 5)] for p in range(2)]
    order = [torch.cat([batch.pattern for batch in some]).tolist() for some in passes]
    assert sorted(order[0]) == sorted(order[1]) == samples["pattern"].tolist()
    assert order[0] != order[1]
    kinds = samples.set_index("pattern")["kind"]
    stored = ImageReader(data / "images").read(np.arange(84))
    for batch in passes[1]:
        assert [CLASSES[k] for k in batch.kind] == kinds[batch.pattern.tolist()].tolist()
        assert np.array_equal(batch.images.numpy(), stored[batch.pattern])


def test_processes_share_each_batch(data):
    batches, _ = batches_of(data)
    whole, shares = batches[7], [batches.shared(rank, 3)[7] for rank in range(3)]
    for rank, share in enumerate(shares):
        assert torch.equal(share.images, whole.images[rank::3])
        assert torch.equal(share.pattern, whole.pattern)
    with pytest.raises(
        InputError, match=r"16 processes cannot share a batch of 9 images: lower ued"
    ):
        batches.shared(0, 16)


def test_about_half_of_the_images_are_turned_by_180_degrees():
    torch.manual_seed(0)
    images = torch.rand(200, 3, 5)
    result = half_turned(images)
    turned = [torch.equal(a, torch.rot90(b, 2)) for a, b in zip(result, images, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(result, images, strict=True)]
    assert sum(turned) + sum(same) == 200
    assert 70 < sum(turned) < 130


def test_transfer_starts_from_given_weights_and_keeps_the_reference_of_the_store(trained, tmp_path):
    """At a learning rate of 0 the weights stay what they were, but for running statistics."""
    other = write_data(tmp_path, seed=5)
    store = ImageReader(other / "images")
    blocks = [store.read(np.arange(84))]
    attributes = {"pixel_size": 0.1, "beam_stop": 0.15}
    write_images(tmp_path / "images2", 84, blocks, store.reference * 2, attributes, np.float16)
    (tmp_path / "images").rename(tmp_path / "before")
    (tmp_path / "images2").rename(tmp_path / "images")
    model = train(other, tmp_path, start=trained, learning_rate=0.0, epochs=1)
    network, before = load_image_network(model)[0], load_image_network(trained)[0]
    for name, value in network.named_parameters():
        assert torch.equal(value, before.get_parameter(name)), name
    assert torch.equal(network.reference, 2 * before.reference)
    moved = network.stem.norm.running_mean - before.stem.norm.running_mean
    assert moved.abs().max() > 0
    run = json.loads((model / "run.json").read_text())
    assert str(trained / "model.safetensors") in run["inputs"]


def test_transfer_from_other_classes_or_settings_is_refused(data, trained, tmp_path):
    with pytest.raises(InputError, match=r"wide_resnet tells kind_0, .* apart, and not 1t, 2h"):
        train(data, tmp_path, start=trained, classes=CLASSES[::-1])
    with pytest.raises(InputError, match="wide_resnet is a network of other settings"):
        train(data, tmp_path, start=trained, network={"kernel": 5})


def test_a_sample_that_is_not_finite_is_named(tmp_path):
    bad = write_data(tmp_path, not_finite=3)
    with pytest.raises(InputError, match=r"WideResNet is not finite .* samples .*train/kind_3/0"):
        train(bad, tmp_path)


def test_what_cannot_be_trained_is_named(data, tmp_path):
    with pytest.raises(
        InputError, match="images of kind 1t, 2h, which is none of the classes kind"
    ):
        train(data, tmp_path, classes=CLASSES[:5])
    with pytest.raises(InputError, match=r"21 x 21 pixels are too small for pool: 22, .* needs 22"):
        train(data, tmp_path, network={"pool": 22})
    with pytest.raises(InputError, match=r"image_size is 18 pixels, .* halved 2 times: .* of 4"):
        train(data, tmp_path, "c_vae", network={"image_size": 18})


def test_samples_of_another_store_are_refused(data, tmp_path):
    pd.read_parquet(inputs_of(data)[1])[:80].to_parquet(tmp_path / "few.parquet")
    with pytest.raises(InputError, match=r"few.parquet has 80 samples but .* has 84 images"):
        read_samples(data / "images", tmp_path / "few.parquet", ["train"])
    with pytest.raises(InputError, match="has no image of the split other"):
        read_samples(*inputs_of(data), ["other"])


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(InputError, match="does not hold a trained network"):
        load_image_network(tmp_path)


def test_the_device_of_this_study_is_named(data, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(InputError, match=r"^ued\.hardware\.device is cuda, but no CUDA device"):
        train(data, tmp_path, hardware=HARDWARE | {"device": "cuda"})


@pytest.mark.parametrize(
    ("accuracies", "stops"),
    [([0.9], False), ([0.9, 0.84], False), ([0.84, 0.85, 0.85], True), ([0.8, 0.7, 0.6], False)],
)
def test_training_stops_after_two_epochs_at_the_target(accuracies, stops):
    """Losses get worse all the time, which ends a training without a target."""
    epochs = [{"accuracy": a, "validation_loss": i} for i, a in enumerate(accuracies)]
    settings = {"epochs": 40, "patience": 2, "target_accuracy": 0.85}
    assert ended(epochs, settings) == stops
    assert ended(epochs, settings | {"epochs": len(epochs)})
    assert ended(epochs, settings | {"target_accuracy": None}) == (len(epochs) > 2)


def test_optimizers():
    network = torch.nn.Linear(1, 1)

    def made(**how):
        shell = ImageTraining(network, TRAINING | how, 1, 1, pd.Series(), Path())
        return shell.configure_optimizers()

    assert isinstance(made(), torch.optim.AdamW)
    sgd = made(optimizer="sgd", momentum=0.5, learning_rate=0.01)
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["lr"]) == (0.5, 0.01)
