"""Checks of the machine and the project folder, each with what to do about what it found."""

import importlib.metadata
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from typing import Any, Literal

import yaml

from diffractory.config import local_paths, validate
from diffractory.errors import InputError
from diffractory.store.files import atomic_file
from diffractory.store.lineage import lineage
from diffractory.store.provenance import whole_product

PYTHON = ((3, 11), (3, 13))
"""First and last version that is tested."""

PROJECT = ("Snakefile", "config/config.yaml", "workflow/schemas/config.schema.yaml")
"""Files by which the project folder is known."""

FREE_SPACE = 2.0
"""GiB that should be free; the results at the default scale take about 0.2."""

ANSWER_TIME = 10
"""Seconds within which a command of SLURM answers."""

QUEUE_TIME = 30
"""Seconds that a test job may wait."""

SLURM_PROFILE = "profiles/slurm/config.yaml"

STUDIES = ("symmetry", "ued", "structure_2d", "generation")

DEVICES = f"simulate.device, ued.images.device and hardware.device of {', '.join(STUDIES)}"
"""Keys of the configuration that name what is computed on."""


@dataclass(frozen=True)
class Finding:
    """What one check found, and what to do about it."""

    status: Literal["ok", "warning", "problem"]
    check: str
    found: str
    advice: str = ""


def examine(folder: Path) -> Iterator[Finding]:
    """Yield what is found on this machine, and in a folder if it holds the project.

    No network is used beyond SLURM's own. The value of an API key is not looked at.
    """
    config: dict[str, Any] = {}
    project = all((folder / part).is_file() for part in PROJECT)
    yield python_version(sys.version_info[:2])
    if project:
        yield from _guarded("packages", package_versions, folder / "envs/constraints.txt")
        try:
            config = read_config(folder)
            yield Finding("ok", "configuration", "config/config.yaml is valid")
        except (InputError, OSError) as error:
            yield Finding("problem", "configuration", str(error))
    else:
        yield Finding(
            "ok",
            "project",
            f"{folder} is not its folder: no check of packages, configuration, data or results",
            "run this in the folder of the Snakefile",
        )
    yield gpus(config)
    yield processors(config)
    yield from _guarded("SLURM", slurm, folder / SLURM_PROFILE)
    results = folder / "results"
    yield scratch(results if results.exists() else folder)
    # gettempdir passes over a TMPDIR that it cannot write to
    yield scratch(Path(os.environ.get("TMPDIR") or tempfile.gettempdir()))
    yield api_key(config)
    if config:
        yield from calculators(config)
        yield from data_files(config, folder)
    if project:
        yield from _guarded("results", recorded_results, results)


def _guarded(
    check: str, function: Callable[[Path], Iterator[Finding]], path: Path
) -> Iterator[Finding]:
    """Yield the findings of a check; bad input is one of them."""
    try:
        yield from function(path)
    except (InputError, OSError) as error:
        yield Finding("problem", check, str(error))


def read_config(folder: Path) -> dict[str, Any]:
    """Return the default configuration of a project folder.

    Raises
    ------
    InputError
        If it is not valid.
    """
    defaults = folder / "config/config.yaml"
    config = _read_yaml(defaults)
    validate(config, folder / "workflow/schemas/config.schema.yaml", defaults)
    return config


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not YAML ({reason}): correct it") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no keys with values: correct it")
    return content


def python_version(version: tuple[int, ...]) -> Finding:
    """Compare a version of Python with those tested."""
    found, (first, last) = platform.python_version(), PYTHON
    if first <= version <= last:
        return Finding("ok", "Python", found)
    wanted = " to ".join(".".join(map(str, v)) for v in PYTHON)
    return Finding("problem", "Python", found, f"use a virtual environment with Python {wanted}")


def package_versions(constraints: Path) -> Iterator[Finding]:
    """Compare installed packages with the versions that are tested together."""
    if not constraints.is_file():
        return
    pins = re.findall(r"^([\w.-]+)==(\S+)", constraints.read_text(encoding="utf-8"), re.MULTILINE)
    installed, others = 0, []
    for name, pin in pins:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of an extra
        installed += 1
        if version.split("+")[0] != pin:  # torch 2.13.0+cpu is 2.13.0
            others.append(f"{name} {version} instead of {pin}")
    if others:
        some = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        yield Finding(
            "warning",
            "packages",
            f"{len(others)} of {installed} are not of the tested version: {some}",
            "pip install -c envs/constraints.txt -e .",
        )
    else:
        yield Finding("ok", "packages", f"all {installed} are of the tested versions")


def gpus(config: Mapping[str, Any]) -> Finding:
    """Look for GPUs that torch can use."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding(
            "problem", "GPU", f"torch cannot be imported ({error})", "install it again with pip"
        )
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        names = ", ".join(f"{d.name} with {d.total_memory / 2**30:.0f} GiB" for d in devices)
        found = f"torch {torch.__version__} with {names}"
        return Finding("ok", "GPU", found, f"{DEVICES} may be cuda")
    wanted = config and "cuda" in {
        config["simulate"]["device"],
        config["ued"]["images"]["device"],
        *(config[study]["hardware"]["device"] for study in STUDIES),
    }
    return Finding(
        "warning" if wanted else "ok",
        "GPU",
        f"torch {torch.__version__}, no GPU",
        f"set {DEVICES} to cpu",
    )


def processors(config: Mapping[str, Any]) -> Finding:
    """Count the cores this process may use, and compare the memory with what config allows."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = f"{cores} cores, {memory:.0f} GiB of memory"
    if config:
        # of a simulation and of a training, which may run side by side
        held = max(config[study]["hardware"]["data_memory"] for study in ("symmetry", "ued"))
        buffers = config["simulate"]["memory"] + held
        if memory < buffers:
            found += f", but jobs may fill {buffers:g} GiB"
            advice = "lower simulate.memory and data_memory of symmetry.hardware and ued.hardware"
            return Finding("warning", "processors", found, advice)
    return Finding("ok", "processors", found)


def slurm(profile: Path) -> Iterator[Finding]:
    """Ask SLURM for its partitions and its accounting, and run a job that does nothing."""
    if not shutil.which("sinfo"):
        yield Finding("ok", "SLURM", "not on this machine, jobs run here")
        return
    answered, output = _ask("sinfo", "--noheader", "--format=%P|%a|%D|%G")
    if not answered:
        advice = "ask those who run the cluster, or run without --profile slurm"
        yield Finding("problem", "SLURM", f"sinfo: {output}", advice)
        return
    partitions = _partitions(output)
    advice = "" if "gpu:" in partitions else "none has a GPU: keep the devices at cpu"
    yield Finding("ok", "SLURM", f"partitions {partitions}", advice)
    answered, output = _ask("squeue", "--noheader", "--me", "--format=%i")
    if answered:
        yield Finding("ok", "SLURM queue", f"{len(output.split())} jobs of yours")
    else:
        yield Finding(
            "problem", "SLURM queue", f"squeue: {output}", "ask those who run the cluster"
        )
    settings = _read_yaml(profile) if profile.is_file() else {}
    answered, output = _ask("sacct", "--noheader", "--parsable2", "--allocations")
    if answered:
        yield Finding("ok", "SLURM accounting", "on")
    else:
        prepared = settings.get("slurm-status-command") == "squeue"
        yield Finding(
            "ok" if prepared else "warning",
            "SLURM accounting",
            f"off; sacct: {output}",
            "" if prepared else f"set slurm-status-command: squeue in {SLURM_PROFILE}",
        )
    yield _test_job(settings)


def _partitions(sinfo: str) -> str:
    """Return words for lines such as ``gpu*|up|4|gpu:a100:4(S:0-1),nvme:1``."""
    words = []
    for name, available, nodes, resources in re.findall(r"(.*)\|(.*)\|(.*)\|(.*)", sinfo):
        gpus = "".join(f", {gpu}" for gpu in re.findall(r"gpu:[^,(\s]+", resources))
        state = "" if available == "up" else f", {available}"
        words.append(f"{name} ({nodes} nodes{gpus}{state})")
    return ", ".join(words) or "none"


def _test_job(profile: Mapping[str, Any]) -> Finding:
    """Run a job with the account and partition of the profile, if it names them."""
    resources = profile.get("default-resources")
    where = [
        f"--{option}={resources[f'slurm_{option}']}"
        for option in ("account", "partition")
        if isinstance(resources, dict) and f"slurm_{option}" in resources
    ]
    limits = [f"--immediate={QUEUE_TIME}", "--time=1", "--ntasks=1", "--job-name=doctor"]
    start = time.monotonic()
    answered, output = _ask("srun", *limits, *where, "true", timeout=QUEUE_TIME + 60)
    seconds = time.monotonic() - start
    if answered:
        return Finding("ok", "SLURM job", f"a test job ran in {seconds:.0f} s")
    if seconds >= QUEUE_TIME or re.search("busy|immediate", output, re.IGNORECASE):
        found = f"a test job was queued for {min(seconds, QUEUE_TIME):.0f} s and given up: {output}"
        return Finding("warning", "SLURM job", found, "the cluster is full; jobs will wait")
    advice = f"set slurm_account and slurm_partition in {SLURM_PROFILE}"
    return Finding("problem", "SLURM job", f"a test job did not run: {output}", advice)


def _ask(*command: str, timeout: float = ANSWER_TIME) -> tuple[bool, str]:
    """Return whether a command succeeded, and its output or the last line of its complaint.

    After ``timeout`` seconds it is ended with a signal that lets srun cancel its job.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return False, f"cannot be started ({error.strerror})"
    with process:
        try:
            output, complaint = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return False, f"no answer in {timeout:g} s"
    if process.returncode == 0:
        return True, output.strip()
    return False, (complaint.strip() or f"exit code {process.returncode}").splitlines()[-1]


def scratch(folder: Path) -> Finding:
    """Write, flush and rename a file in a folder, and look how much space is free."""
    if not folder.is_dir():
        return Finding("problem", "scratch", f"{folder} is not a folder", "make it, or set another")
    path = folder / f".diffractory-doctor-{os.getpid()}"
    try:
        with atomic_file(path) as partial:
            partial.write_bytes(bytes(2**20))
        path.unlink()
        free = shutil.disk_usage(folder).free / 2**30
    except InputError as error:
        return Finding("problem", "scratch", str(error))
    except OSError as error:
        found = f"{folder} cannot be written ({error.strerror})"
        return Finding("problem", "scratch", found, "check your rights and quota, or use another")
    found = f"{folder} can be written, {free:.1f} GiB free"
    if free < FREE_SPACE:
        return Finding("warning", "scratch", found, "make room, or use another disk")
    return Finding("ok", "scratch", found)


def api_key(config: Mapping[str, Any]) -> Finding:
    """Say whether there is a key of the Materials Project, and whether one is needed."""
    if os.environ.get("MP_API_KEY"):
        return Finding("ok", "API key", "MP_API_KEY is set")
    sources = {config["datasets"][name]["source"] for name in _datasets(config)}
    needed = "materials_project" in sources
    return Finding(
        "problem" if needed else "ok",
        "API key",
        "MP_API_KEY is not set",
        "set it to the key of your Materials Project account"
        if needed
        else "only the source materials_project needs it",
    )


def calculators(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Start the calculators of forces that a run uses."""
    layers = config["structure_2d"]
    names = [config["ued"]["calculator"], config["generation"]["ground_state"]["calculator"]]
    if layers["relax"]["relaxed"] or layers["perturb"]["method"] == "dynamics":
        names.append(layers["calculator"])
    for name in dict.fromkeys(names):
        check = f"calculator {name}"
        try:
            from diffractory.augment.calculators import calculator

            calculator(name)
        except (InputError, ImportError) as error:
            advice = (
                "install what is missing, or set calculator of ued, structure_2d and "
                "generation.ground_state to another"
            )
            yield Finding("problem", check, str(error), advice)
        else:
            yield Finding("ok", check, "starts")


def data_files(config: Mapping[str, Any], folder: Path) -> Iterator[Finding]:
    """Look for the local files of every data set; only the configured ones must have them."""
    base = folder / os.environ.get("DIFFRACTORY_DATA", "")
    for name, settings in config["datasets"].items():
        paths = local_paths(settings)
        missing = [str(base / path) for path in paths if not (base / path).exists()]
        check, found = f"data set {name}", f"{', '.join(missing)} not there"
        if missing and name in _datasets(config):
            advice = "set DIFFRACTORY_DATA to the folder that its paths start from"
            yield Finding("problem", check, found, advice)
        elif missing:
            yield Finding("ok", check, found, "this run does not read it")
        elif paths:
            yield Finding("ok", check, f"{', '.join(paths)} there")


def _datasets(config: Mapping[str, Any]) -> set[str]:
    """Return the names of the data sets that a run reads."""
    if not config:
        return set()
    others = config["generation"]["datasets"]
    return {config["dataset"], config["structure_2d"]["dataset"], *others}


def recorded_results(results: Path) -> Iterator[Finding]:
    """Count the products that differ from their record, and those made from what changed since."""
    products = lineage(sorted(results.rglob("*run.json")))
    damaged = {
        relpath(whole_product(path, product.record.path), results.parent)
        for product in products
        if product.record
        for path in product.damaged
    }
    if damaged:
        listed = " ".join(sorted(damaged))
        found = f"{len(damaged)} products are damaged or were changed since they were written"
        # What is only deleted is not made again where all that came from it is there.
        advice = f"make them, and what came from them, again: snakemake --forcerun {listed}"
        yield Finding("problem", "results", found, advice)
    stale = [
        product.paths[0]
        for product in products
        if any(source.state == "changed since" and not source.damaged for source in product.inputs)
    ]
    if stale:
        some = ", ".join(stale[:3]) + (", ..." if len(stale) > 3 else "")
        found = f"{len(stale)} of {len(products)} records name inputs that changed since: {some}"
        yield Finding("warning", "results", found, "run snakemake again")
    if not damaged and not stale:
        yield Finding("ok", "results", f"{len(products)} records, no file has changed since")
