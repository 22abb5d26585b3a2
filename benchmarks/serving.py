"""Compares predictions by the stock command, by stock nnU-Net in one process, and by the predictor server with nginx.

    python -m benchmarks.serving [--requests 100] [--configurations 2d_tiny 3d_fullres] [--cases 8] [--source FOLDER]

In (a) each request runs the command, as in a shell script. (b) is what a careful user writes: nnUNetPredictor in
memory, one request after another, without a server. Ours answers HTTP on a Unix socket. Weights are random. For
3d_fullres there are an eighth of the requests, because one takes seconds on a CPU. Memory is the sum over the working
processes: the kernel's peak of each or, for commands and jobs with several processes, samples of their proportional
memory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks._front import front
from benchmarks._load import Timed, ask, below_me, load, mentioning, peak_mib, sampled_memory
from benchmarks.prediction import CONFIGURATIONS, PROJECT, SOURCE, cli, job, prepare
from devtools.testbed.nginx import missing
from devtools.testbed.prediction import PLANS, TRAINER, write_card
from devtools.testbed.preprocessing import DATASET
from devtools.testbed.serving import ServerProcess
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.runner import attempt_limits

CORES = os.cpu_count() or 1
CONCURRENCY = (1, 4, 16)
STOCK_REQUESTS, BATCH = 3, 8
PATH = f"/v1/models/{DATASET}/predict"


@dataclass(slots=True, kw_only=True)
class House:
    """Holds one configuration, the stock command's bytes by name of the image (``expected``), and measurements (``rows``)."""

    workspace: Workspace
    folder: Path
    configuration: str
    model: Path
    images: list[Path]
    requests: int
    expected: dict[str, bytes] = field(default_factory=dict)
    rows: list[tuple[str, Timed]] = field(default_factory=list)
    jobs: int = 0

    def add(self, what: str, timed: Timed) -> None:
        """Add a row and print it at once."""
        self.rows.append((what, timed))
        print(f"  {self.configuration}, {what}: {timed.total_s:.2f} s for {len(timed.seconds)}", flush=True)

    def new(self, name: str) -> Path:
        """Return a new folder for a batch's results, below the output root."""
        path = Path(self.workspace.output_roots[0]) / self.configuration / name
        path.mkdir(parents=True)
        return path

    def as_expected(self, folder: Path, *, batch: bool = False) -> bool:
        """Return whether all segmentations equal the stock command's; those of a ``batch`` are named by :meth:`batch_folder`."""
        found = {path.name: path.read_bytes() for path in folder.glob("*.nii.gz")}
        return bool(found) and all(content == self.expected[name.split("-")[-1] if batch else name] for name, content in found.items())

    def batch_folder(self, count: int) -> Path:
        """Make a folder of ``count`` cases, which are the images repeated under new names."""
        folder = self.folder / f"batch{count}"
        if not folder.exists():
            folder.mkdir()
            for number in range(count):
                image = self.images[number % len(self.images)]
                shutil.copy(image, folder / f"{number:03d}-{image.name}")
        return folder


def stock_command(house: House) -> None:
    """Measure (a), one call of the command for each request, then the batches, with which ours is compared."""
    took, out = [], house.new("stock")
    with sampled_memory(below_me) as memory:
        for number, image in enumerate(house.images[:STOCK_REQUESTS]):
            single = house.folder / f"single{number}"
            single.mkdir()
            shutil.copy(image, single)
            begun = time.perf_counter()
            cli(house.workspace, single, out, house.configuration)
            took.append(time.perf_counter() - begun)
    everything = house.folder / "all"
    everything.mkdir()
    for image in house.images:
        shutil.copy(image, everything)
    whole = house.new("stock-all")
    begun = time.perf_counter()
    cli(house.workspace, everything, whole, house.configuration)
    total = time.perf_counter() - begun
    house.expected = {path.name: path.read_bytes() for path in whole.glob("*.nii.gz")}
    house.add("(a) stock command", Timed(seconds=took, total_s=sum(took), peak_mib=memory[0], equal=house.as_expected(out)))
    house.add(f"(a) stock command, batch of {len(house.images)}", batch(len(house.images), total, 0, equal=True))


def one_process(house: House, kind: str, requests: Sequence[tuple[Path, Path]]) -> dict[str, Any]:
    """Run :mod:`benchmarks._one_process` with image and target of each request."""
    order = {
        "kind": kind,
        "model": str(house.model / f"{TRAINER}__{PLANS}__{house.configuration}"),
        "workspace": house.workspace.to_json(),
        "dataset": DATASET,
        "cpus": CORES,
        "requests": [[str(image), str(target)] for image, target in requests],
    }
    # our environment is that of a job, stock nnU-Net's that of a shell
    limits = attempt_limits.environment(cpus=CORES, device="cpu", gpus=(), step="predict") if kind == "ours" else {}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks._one_process", json.dumps(order)],
        cwd=PROJECT,
        env={
            **os.environ,
            **limits,
            **house.workspace.nnunet_environment(model="m1"),
            "PYTHONPATH": os.pathsep.join([str(PROJECT / "plugins"), str(PROJECT)]),
        },
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{kind}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def stock_in_process(house: House) -> None:
    """Measure (b)."""
    out = house.new("in-process")
    images = [house.images[number % len(house.images)] for number in range(house.requests)]
    found = one_process(house, "stock", [(image, out / image.name.replace("_0000", "")) for image in images])
    took = found["seconds"]
    house.add("(b) stock, one process", Timed(seconds=took, total_s=sum(took), peak_mib=found["peak_mib"], equal=house.as_expected(out)))


def ours_in_process(house: House, count: int) -> None:
    """Measure a batch with the model in memory."""
    out = house.new(f"warm{count}")
    images = sorted(house.batch_folder(count).iterdir())
    found = one_process(house, "ours", [(image, out / image.name.replace("_0000", "")) for image in images])
    equal = house.as_expected(out, batch=True)
    house.add(f"ours, batch of {count}, warm", batch(count, found["seconds"][0], found["peak_mib"], equal=equal))


def ours_as_job(house: House, count: int) -> None:
    """Measure a batch as Airflow starts it: a job with imports and model."""
    out = house.new(f"job{count}")
    images = house.batch_folder(count)
    house.jobs += 1
    number = house.jobs + 100 * CONFIGURATIONS.index(house.configuration)
    with sampled_memory(lambda: mentioning(f"predict-benchmark{number:03d}")) as memory:
        begun = time.perf_counter()
        job(house.workspace, number, images, out)
        took = time.perf_counter() - begun
    house.add(f"ours, batch of {count}, job", batch(count, took, memory[0], equal=house.as_expected(out, batch=True)))


def batch(count: int, took: float, memory: float, *, equal: bool) -> Timed:
    """Return the times of a batch, in which each request gets an equal share."""
    return Timed(seconds=[took / count] * count, total_s=took, peak_mib=memory, equal=equal)


@contextlib.contextmanager
def servers(house: House, count: int) -> Iterator[list[ServerProcess]]:
    """Start predictor servers, among which the cores are divided."""
    sockets = Path(tempfile.mkdtemp(prefix="sockets_", dir=house.folder))
    workspace = replace(house.workspace, cpu_slots=count)  # each holds one
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                ServerProcess(
                    workspace,
                    sockets / f"predictor-{number}.log",
                    *("--cpus", str(max(1, CORES // count)), "--waiting", str(max(CONCURRENCY)), "--dataset", DATASET),
                    temporary=sockets / f"tmp{number}",
                    uds=sockets / f"predictor-{number}.sock",
                )
            )
            for number in range(1, count + 1)
        ]


def measure(house: House, where: Path, behind: Sequence[ServerProcess], *, concurrency: int) -> Timed:
    """Measure requests at one concurrency."""
    before = [phases(server) for server in behind]
    took, total, contents = load(where, PATH, house.images, requests=house.requests, concurrency=concurrency)
    names = [image.name.replace("_0000", "") for image in house.images]
    equal = all(content == house.expected[names[number % len(names)]] for number, content in enumerate(contents))
    spent = {name: sum(phases(server)[name] - old[name] for server, old in zip(behind, before, strict=True)) for name in before[0]}
    note = ", ".join(f"{name} {spent[name] / house.requests * 1000:.0f}" for name in ("read", "network", "write"))
    return Timed(seconds=took, total_s=total, peak_mib=sum(peak_mib(s.process.pid) for s in behind), equal=equal, note=f"ms: {note}")


def phases(server: ServerProcess) -> dict[str, float]:
    """Return the seconds that a server has spent in each kind of thread."""
    text = ask(Path(str(server.uds)), "/metrics").decode()
    return {name: float(value) for name, value in re.findall(r'nnunet_phase_seconds_sum{phase="(\w+)"} (\S+)', text)}


def ours_as_server(house: House) -> None:
    """Measure one server directly, then nginx in front of one and of two."""
    with servers(house, 1) as [server]:
        socket = Path(str(server.uds))
        load(socket, PATH, house.images, requests=2, concurrency=1)
        for concurrency in CONCURRENCY:
            house.add(f"server, {concurrency} at once", measure(house, socket, [server], concurrency=concurrency))
    if missing():
        print(f"  not measured: {missing()}")
        return
    for count in (1, 2):
        with servers(house, count) as several, front(Path(str(several[0].uds)).parent, count) as socket:
            load(socket, PATH, house.images, requests=2 * count, concurrency=count)
            for concurrency in CONCURRENCY:
                timed = measure(house, socket, several, concurrency=concurrency)
                house.add(f"nginx, {count} server{'s' * (count > 1)}, {concurrency} at once", timed)


def table(house: House) -> None:
    """Print one configuration's rows, with ratios of the throughput."""
    command, process = (next(timed for what, timed in house.rows if what.startswith(kind)) for kind in ("(a)", "(b)"))
    print(f"\n{house.configuration:<34}{'requests':>9}{'p50 s':>8}{'p95 s':>8}{'per s':>8}{'x (a)':>8}{'x (b)':>8}{'MiB':>8}  bytes")
    for what, timed in house.rows:
        spread = ["-", "-"] if "batch" in what else [f"{timed.quantile(share):.3f}" for share in (0.5, 0.95)]
        ratios = [f"{timed.per_s / other.per_s:.1f}" for other in (command, process)]
        memory = f"{timed.peak_mib:.0f}" if timed.peak_mib else "-"
        columns = f"{len(timed.seconds):>9}{spread[0]:>8}{spread[1]:>8}{timed.per_s:>8.2f}{ratios[0]:>8}{ratios[1]:>8}{memory:>8}"
        print(f"{what:<34}{columns}  {'equal' if timed.equal else 'DIFFER':<7}{timed.note}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--configurations", nargs="+", choices=CONFIGURATIONS, default=CONFIGURATIONS)
    parser.add_argument("--cases", type=int, default=8, help="different images, at most 8; fewer, and fewer requests, for a quick look")
    parser.add_argument("--source", type=Path, default=SOURCE)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="serving_"))
    houses = []
    try:
        workspace, root, held_out = prepare(work, options.source)
        for configuration in options.configurations:
            write_card(root, {configuration: [0]}, promote=workspace)
            (work / configuration).mkdir()
            small = configuration.startswith("2d")
            requests = options.requests if small else max(1, options.requests // 8)
            house = House(
                workspace=workspace,
                folder=work / configuration,
                configuration=configuration,
                model=root,
                images=held_out[: options.cases],
                requests=requests,
            )
            houses.append(house)
            stock_command(house)
            stock_in_process(house)
            few = min(BATCH, options.requests)
            for count in sorted({few, requests} if small else {few}):
                ours_in_process(house, count)
                ours_as_job(house, count)
            ours_as_server(house)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"\n{CORES} cores, no GPU; (a) and the job use processes, (b) and ours one each; servers share the cores")
    for house in houses:
        table(house)


if __name__ == "__main__":
    main()
