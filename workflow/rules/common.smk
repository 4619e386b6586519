import os
from math import prod
from pathlib import Path

from snakemake.exceptions import WorkflowError

from diffractory.config import in_order, local_paths, validate
from diffractory.errors import InputError

DEFAULTS = Path(workflow.basedir, "config/config.yaml")
try:
    validate(
        config,
        schema=Path(workflow.basedir, "workflow/schemas/config.schema.yaml"),
        defaults=DEFAULTS,
    )
except InputError as error:
    raise WorkflowError(str(error)) from None
ordered = in_order(config, DEFAULTS)
config.clear()
config.update(ordered)


wildcard_constraints:
    dataset=r"\w+",
    engine="bloch|kinematic",
    shard=r"\d+",
    shards=r"\d+",
    n=r"\w+",


DATASET = config["dataset"]
SOURCE = config["datasets"][DATASET]["source"]
STRUCTURES = f"results/structures/{DATASET}/structures.parquet"
SIMULATED = f"results/patterns/{DATASET}/{config['simulate']['engine']}"
PATTERNS = f"{SIMULATED}.augmented" if config["augment"]["patterns"] else SIMULATED
CLEANED = "augmented" if config["augment"]["structures"] else "cleaned"


def at_most(threads):
    """Return the threads of a job that is no training: fewer where the run says so."""
    return min(threads, config["max_threads"])


def source_files(dataset):
    """Return the local files that a data set is read from."""
    folder = os.environ.get("DIFFRACTORY_DATA", "")
    return [
        os.path.join(folder, path) for path in local_paths(config["datasets"][dataset])
    ]


for dataset in dict.fromkeys(
    [DATASET, config["structure_2d"]["dataset"], *config["generation"]["datasets"]]
):
    for file in source_files(dataset):
        if not os.path.exists(file):
            raise WorkflowError(
                f"data set {dataset} reads {file}, which is not there: set DIFFRACTORY_DATA to the "
                "folder that its paths start from, or correct the paths under "
                f"datasets.{dataset} in the configuration"
            )


UED_SERIES = os.path.join(
    os.environ.get("DIFFRACTORY_DATA", ""), config["ued"]["experiment"]["folder"]
)
if config["ued"]["experiment"]["source"] == "folder" and not os.path.isdir(UED_SERIES):
    raise WorkflowError(
        f"ued.experiment reads the folder {UED_SERIES}, which is not there: set DIFFRACTORY_DATA to "
        "the folder that its path starts from, or correct ued.experiment.folder"
    )


SCAN = config["symmetry"]["scan"]
SCAN_FILE = "results/scans/gold.zarr"
if SCAN["source"] == "file":
    SCAN_FILE = os.path.join(os.environ.get("DIFFRACTORY_DATA", ""), SCAN["path"])
    if not os.path.exists(SCAN_FILE):
        raise WorkflowError(
            f"symmetry.scan reads {SCAN_FILE}, which is not there: set DIFFRACTORY_DATA to the folder "
            "that its path starts from, or correct symmetry.scan.path"
        )


def simulation_settings():
    """Return the settings that decide what a pattern is; the number of shards does not."""
    return {key: value for key, value in config["simulate"].items() if key != "shards"}


def shards_of(wildcards, suffix):
    """Return the file of every shard of a pattern store."""
    shards = config["simulate"]["shards"]
    folder = f"results/patterns/{wildcards.dataset}/{wildcards.engine}.shards"
    return [f"{folder}/{shard}-of-{shards}{suffix}" for shard in range(shards)]


def predictions_of(study, models):
    """Return the prediction files of some models of a study."""
    return [f"results/evaluation/{study}/{model}.parquet" for model in models]


def symmetry_context(kind, name):
    """Return what a table or figure says about its run, and what it shows, as far as it reads it."""
    context = {
        "scale": config["scale"],
        "dataset": DATASET,
        "source": SOURCE,
        "split_by": config["split"]["by"],
    }
    if name in SYMMETRY_VOTES[kind]:
        context["aggregate"] = config["symmetry"]["aggregate"]
    if name in SHOW_SCAN[kind]:
        context["scan"] = SCAN["source"]
    if name == "ablations":
        context["ablations"] = ABLATIONS
    return context


def shown_predictions(kind, name):
    """Return the predictions or maps that a table or figure reads."""
    models = {"table": SYMMETRY_TABLES, "figure": SYMMETRY_FIGURES}[kind][name]
    if name in SHOW_SCAN[kind]:
        return expand("results/maps/{model}", model=models)
    study = "symmetry/perturbed" if name == "robustness" else "symmetry"
    return predictions_of(study, models)


def shown_conditions(kind, name):
    """Return what says how patterns are perturbed, or what a simulated scan shows, if any."""
    if name in SHOW_SCAN[kind] and SCAN["source"] == "gold":
        return ["results/scans/gold.truth.parquet"]
    return [f"{SIMULATED}.perturbed.parquet"] if name == "robustness" else []


def network_settings(name):
    """Return which network goes by a name, and its settings with those of an ablation in place."""
    if name not in ABLATIONS:
        return name, config["symmetry"][name]
    ablation = ABLATIONS[name]
    settings = config["symmetry"][ablation["of"]]
    return ablation["of"], {
        part: settings[part] | ablation.get(part, {}) for part in settings
    }


def shown_model(kind, name):
    """Return the model that a table or figure shows the inside of, if any."""
    return (
        ["results/models/symmetry/pe_ag_gmoe"] if name in SHOW_PE_AG_GMOE[kind] else []
    )


def gpu_resources(device, devices=1, nodes=1):
    """Return how a job asks for GPUs, if it computes on any, in the way of the site."""
    if device != "cuda":
        return {}
    kind, _, model = config["slurm"]["gpu_request"].partition(":")
    if kind == "gres":
        gres = ["gpu", model, str(devices)] if model else ["gpu", str(devices)]
        return {"tasks_per_gpu": 1, "gres": ":".join(gres)}
    request = {"tasks_per_gpu": 1, "gpu": devices * nodes}
    return request | {"gpu_model": model} if model else request


def training_resources(hardware):
    """Return the tasks of a training, one for each device, and what they ask for."""
    device, devices, nodes = (hardware[key] for key in ("device", "devices", "nodes"))
    resources = gpu_resources(device, devices, nodes) | {"tasks": devices * nodes}
    if devices * nodes > 1:
        # The script starts its tasks itself: SLURM must start the script once.
        resources |= {
            "mpi": "srun",
            "nodes": nodes,
            "cpus_per_task": hardware["threads"],
        }
    return resources


def image_settings(images):
    """Return the settings that decide what the images of a set are; the number of shards does not."""
    common = {
        key: value
        for key, value in UED["images"].items()
        if key not in ("shards", "counts", "classes", "latent")
    }
    return common | {
        "counts": UED["images"]["counts"][images],
        "kinds": UED["images"][images],
    }


def clean_images(images, suffix):
    """Return a file of every shard of a set of images without noise."""
    shards = UED["images"]["shards"]
    folder = f"{UED_IMAGES}/{images}.clean"
    return [f"{folder}/{shard}-of-{shards}{suffix}" for shard in range(shards)]


def detector_of_networks():
    """Return the pixels that networks read, which are those of the detected images."""
    side = 2 * round(UED["images"]["q_max"] / UED["images"]["q_step"]) + 1
    bins = prod(step.get("bin", 1) for step in UED["detector"]["steps"])
    return {
        "shape": [side // bins, side // bins],
        "pixel_size": UED["images"]["q_step"] * bins,
        "beam_stop": UED["detector"]["beam_stop"],
    }


def learnt_images(network, suffix):
    """Return the image store that a network learns from, or the table beside it."""
    stores = {"cnn_syn": "classes", "cnn_exp": "experiment", "c_vae": "latent"}
    return f"{UED_IMAGES}/{stores[network]}{suffix}"


def start_of(network):
    """Return the model that a network's training starts from, if any."""
    return ["results/models/ued/cnn_syn"] if network == "cnn_exp" else []


def kinds_of(network):
    """Return the kinds of images that a network is about."""
    return list(UED["images"]["latent" if network == "c_vae" else "classes"])


def image_network_settings(network):
    """Return the settings of a network; what CNNExp is follows from CNNSyn, which it starts from."""
    architecture = "c_vae" if network == "c_vae" else "cnn_syn"
    return {
        "network": UED[architecture]["network"],
        "training": UED[network]["training"],
    }


def shown_image_networks(shown, name):
    """Return the model that a table or figure shows the inside of, if any."""
    return [f"results/models/ued/{shown[name]}"] if name in shown else []


def shown_examples(name):
    """Return the images that a figure shows, if any."""
    shows = name in UED_FIGURES_WITH_EXAMPLES
    return ["results/evaluation/ued/examples.parquet"] if shows else []


def ued_context():
    """Return what a table or figure says about its run."""
    return {
        "scale": config["scale"],
        "dataset": "mote2",
        "source": UED["experiment"]["source"],
    }


def cleaning_settings(dataset):
    """Return the limits that structures of a data set must keep."""
    if dataset != LAYERS_DATASET or dataset == DATASET:
        return config["structures"]
    return config["structures"] | {"max_volume": LAYERS["max_volume"]}


def moving_layers(motion):
    """Return the layers at rest or in thermal motion."""
    return (
        f"{LAYERS_FOLDER}/{'perturbed' if motion == 'perturbed' else 'relaxed'}.parquet"
    )


def layer_pattern_settings(motion):
    """Return how patterns of layers are simulated; those in motion have it in their atoms already."""
    still = {"debye_waller": 0.0} if motion == "perturbed" else {}
    return LAYERS["patterns"] | still


def patterns_of_network(network):
    """Return the patterns that a retrieval network learns from and is asked about."""
    motion = "perturbed" if network.endswith("_perturbed") else "unperturbed"
    return f"{LAYERS_PATTERNS}/{motion}"


def retrieval_kind(network):
    """Return which network goes by a name."""
    return "invariant" if network.startswith("invariant") else "dd2d"


def retrieval_settings(network):
    """Return the settings of a retrieval network, with the grid that its patterns are on."""
    kind, grid = retrieval_kind(network), LAYERS["patterns"]
    settings = LAYERS[kind]["network"] | {"q_max": grid["q_max"]}
    if kind == "dd2d":
        ablation = LAYERS_ABLATIONS.get(network.removeprefix("ablations/"), {})
        settings |= {"q_step": grid["q_step"]} | ablation
    return {"network": settings, "training": LAYERS[kind]["training"]}


def structure_2d_context(name):
    """Return what a table or figure says about its run, and the ablations where it shows them."""
    context = {
        "scale": config["scale"],
        "dataset": LAYERS_DATASET,
        "source": config["datasets"][LAYERS_DATASET]["source"],
        "perturbed": {
            "method": LAYERS["perturb"]["method"],
            "calculator": LAYERS["calculator"],
        },
    }
    if name == "ablations":
        network = LAYERS["dd2d"]["network"]
        context["ablations"] = {
            name: network | ablation for name, ablation in LAYERS_ABLATIONS.items()
        } | {"dd2d": network}
    return context


def shown_retrieval_network(name):
    """Return the model that a figure shows the inside of, if any."""
    shown = STRUCTURE_2D_FIGURES_SHOW
    return [f"results/models/structure_2d/{shown[name]}"] if name in shown else []


def shown_retrieval_examples(name):
    """Return the example that a figure shows, if any."""
    shows = name in STRUCTURE_2D_FIGURES_WITH_EXAMPLES
    return ["results/evaluation/structure_2d/examples.parquet"] if shows else []


def generator_kind(generator):
    """Return which network a model of crystals is."""
    return "ftcp" if generator.startswith("ftcp") else "crystal_vae"


def split_of_generator(generator):
    """Return the split that a model of crystals learns from."""
    return "disjoint_split" if generator.endswith("_disjoint") else "split"


def generator_settings(generator):
    """Return the settings of a model of crystals, of its own process alone."""
    model = generator.removesuffix("_disjoint")
    sizes = {"max_sites": CRYSTALS["crystals"]["max_sites"]}
    if model == "ftcp":
        ftcp = CRYSTALS["ftcp"]
        return {"network": ftcp["network"] | sizes, "training": ftcp["training"]}
    own = CRYSTALS["models"][model]
    of_process = {
        "ddpm": ["steps", "beta_min", "beta_max"],
        "score_matching": ["langevin"],
        "flow": ["flow_steps"],
    }
    keys = [*of_process[own["process"]], "type_sigma_min", "type_sigma_max"]
    diffusion = {key: CRYSTALS["diffusion"][key] for key in keys}
    network = CRYSTALS["network"] | own | sizes | {"diffusion": diffusion}
    return {"network": network, "training": CRYSTALS["training"]}


def sampling_settings(generator):
    """Return how many crystals a model makes, and in which further ways."""
    sampling = CRYSTALS["sampling"]
    samplers = ["eq_6"] if generator in sampling["eq_6"] else []
    samplers += [f"steps_{n}" for n in sampling["steps"].get(generator, [])]
    numbers = {
        key: sampling[key] for key in ("reconstructed", "generated", "batch_size")
    }
    return numbers | {"samplers": samplers}


def matching_settings():
    """Return when two crystals are one."""
    return {
        key: CRYSTALS["evaluation"][key] for key in ("tolerances", "seconds_per_pair")
    }


def relaxation_settings():
    """Return how generated crystals are relaxed."""
    keys = ["crystals", "pressure", "max_force", "max_steps", "seconds_per_crystal"]
    return {key: GROUND_STATE[key] for key in keys}


def judged(read):
    """Return files by kind: of every data set, and of the models that each kind is read of."""
    patterns = {
        "reconstructed": f"{JUDGED}/{{dataset}}/{{model}}.parquet",
        "generated": f"{JUDGED}/{{dataset}}/{{model}}.generated.parquet",
        "reference": f"{JUDGED}/{{dataset}}/{{model}}.generated.reference.parquet",
        "relaxed": f"{JUDGED}/{GROUND_STATE['dataset']}/{{model}}.relaxed.parquet",
        "samples": f"{GENERATED}/{{dataset}}/{{model}}.parquet",
        "models": "results/models/generation/{dataset}/{model}",
    }
    return {
        kind: list(
            dict.fromkeys(
                expand(pattern, dataset=CRYSTAL_SETS, model=read.get(kind, []))
            )
        )
        for kind, pattern in patterns.items()
    }


def generation_context(name):
    """Return what a table or figure says about its run."""
    cutoffs = CRYSTALS["evaluation"]["cutoffs"]
    context = {
        "scale": config["scale"],
        "sources": {dataset: config["datasets"][dataset] for dataset in CRYSTAL_SETS},
        "tolerances": CRYSTALS["evaluation"]["tolerances"],
        "cutoffs": {
            dataset: cutoffs.get(dataset, cutoffs["mp_20"]) for dataset in CRYSTAL_SETS
        },
        "calculator": GROUND_STATE["calculator"],
        "pressure": GROUND_STATE["pressure"],
    }
    if name == "steps":
        own = {
            "ddpm": CRYSTALS["diffusion"]["steps"],
            "flow": CRYSTALS["diffusion"]["flow_steps"],
        }
        processes = {name: CRYSTALS["models"][name]["process"] for name in TIME_REDUCED}
        context["steps"] = {name: own[process] for name, process in processes.items()}
    return context


CATEGORIES = {
    "symmetry": "Crystal system and space group from Bragg spots",
    "ued": "Ultrafast diffraction of MoTe2 after a laser pulse",
    "structure_2d": "The two-dimensional crystal behind a pattern",
    "generation": "New crystals near their ground state",
}


def in_report(path):
    """Return a table or figure of a study, marked for the report of Snakemake itself."""
    _, kinds, study, _ = path.split("/")
    kind = kinds.removesuffix("s")
    return report(
        path,
        category=CATEGORIES[study],
        labels={"what": f"{kind} {{n}}"},
        caption=f"../report/{kind}.rst",
    )


def same_configuration():
    """Return the options of snakemake that name the configuration of this run."""
    files = [os.path.relpath(file) for file in workflow.overwrite_configfiles]
    return ["--configfile", *files] if files else []
