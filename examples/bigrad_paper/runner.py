"""The runner of the four experiments: methods × seeds, a table, a JSON file and a picture, all from one command.

An experiment is a function `run(method, seed, settings) -> figures`. A script says

    EXPERIMENT = Experiment("control", METHODS, run, full=Settings(), quick=Settings(epochs=2), figures={"cost": ".4f"})
    if __name__ == "__main__":
        main(EXPERIMENT)

and is called as `python examples/bigrad_paper/control.py [--quick] [--seeds 5] [--out FOLDER]`.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- results, written by the command -->", "<!-- end of results -->"


@dataclass(frozen=True)
class Record:
    """What one method gave with one seed. seconds: wall-clock time of the run."""

    method: str
    seed: int
    figures: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Experiment:
    """Methods by their names, the function that runs one of them, and the settings, dataclasses, that it gets.

    figures: those of the table, in its order, with their formats. run may return more, which go into the JSON file, or
    fewer in its quick form.
    picture: draws the records into the PNG file of the given path.
    """

    name: str
    methods: Mapping[str, Any]
    run: Callable[[Any, int, Any], dict[str, float]]
    full: Any
    quick: Any
    figures: Mapping[str, str]
    seeds: int = 5
    quick_seeds: int = 2
    picture: Callable[[Sequence[Record], Path], None] | None = None
    packages: Sequence[str] = field(default=("bigrad", "torch", "numpy", "scipy", "cvxpy"))


def collect(experiment: Experiment, settings: Any, seeds: Sequence[int]) -> list[Record]:
    """Every method with every seed. torch's generator starts at the seed, so that methods draw alike."""
    records = []
    with tqdm(total=len(seeds) * len(experiment.methods), desc=experiment.name) as bar:
        for seed in seeds:
            for name, method in experiment.methods.items():
                bar.set_postfix_str(f"{name}, seed {seed}")
                torch.manual_seed(seed)
                start = time.perf_counter()
                figures = {k: float(v) for k, v in experiment.run(method, seed, settings).items()}
                records.append(Record(name, seed, figures, round(time.perf_counter() - start, 3)))
                bar.update()
    return records


def fit(
    network: nn.Module, loss: Callable[[int, Tensor], Tensor], items: int, batch: int, epochs: int, rate: float
) -> tuple[nn.Module, float]:
    """The network, trained by Adam while its rate decays to a twentieth, and the processor seconds that it took.

    loss(epoch, rows): that of some of the items, by their indices.
    """
    begun = time.process_time()
    optimiser = torch.optim.Adam(network.parameters(), lr=rate)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs, rate / 20)
    for epoch in range(epochs):
        for rows in torch.randperm(items).split(batch):
            optimiser.zero_grad()
            loss(epoch, rows).backward()
            optimiser.step()
        plan.step()
    return network.eval(), time.process_time() - begun


def spread(values: Sequence[float], form: str) -> str:
    """Mean ± standard deviation (n - 1) over seeds."""
    return f"{fmean(values):{form}}" + (f" ± {stdev(values):{form}}" if len(values) > 1 else "")


def table(records: Sequence[Record], figures: Mapping[str, str]) -> str:
    """A Markdown table, mean ± standard deviation over seeds; the longer of methods and figures runs down the page."""
    methods = list(dict.fromkeys(r.method for r in records))
    figures = {f: form for f, form in figures.items() if f in records[0].figures}
    cells = {
        (m, f): spread([r.figures[f] for r in records if r.method == m], form)
        for m in methods
        for f, form in figures.items()
    }
    down, across, at = (list(figures), methods, lambda f, m: cells[m, f])
    if len(methods) >= len(figures):
        down, across, at = methods, list(figures), lambda m, f: cells[m, f]
    rows = [["", *across], ["---"] * (len(across) + 1), *([d, *(at(d, a) for a in across)] for d in down)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def machine() -> str:
    """Cores, memory and load of this machine, and which torch."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    kind = "CUDA" if torch.cuda.is_available() else "CPU"
    return f"{cores} cores, {memory:.0f} GiB, {kind} torch {torch.__version__.split('+')[0]}, load {os.getloadavg()[0]:.1f}"


def written(page: Path, results: str) -> None:
    """Put the results between their two marks on the page, and leave the rest of it as it is."""
    text = page.read_text() if page.exists() else f"# {page.stem}\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{results}\n{END}{after}")


def main(experiment: Experiment, arguments: Sequence[str] | None = None) -> list[Record]:
    """Run what the command line asks for; print the table; write NAME.json, NAME.md and NAME.png into the folder."""
    parser = argparse.ArgumentParser(description=sys.modules[experiment.run.__module__].__doc__)
    parser.add_argument("--quick", action="store_true", help="small settings, into a temporary folder: does it run?")
    parser.add_argument(
        "--seeds", type=int, help=f"how many ({experiment.seeds}, or {experiment.quick_seeds} if quick)"
    )
    parser.add_argument("--out", type=Path, help="folder of the results (docs/experiments)")
    given = parser.parse_args(arguments)
    settings = experiment.quick if given.quick else experiment.full
    seeds = range(given.seeds or (experiment.quick_seeds if given.quick else experiment.seeds))
    folder = given.out or (Path(tempfile.mkdtemp()) if given.quick else ROOT / "docs" / "experiments")
    folder.mkdir(parents=True, exist_ok=True)
    command = f"python examples/bigrad_paper/{experiment.name}.py" + " --quick" * given.quick
    command += f" --seeds {given.seeds}" * bool(given.seeds)

    where, start = machine(), time.perf_counter()
    records = collect(experiment, settings, seeds)
    seconds = time.perf_counter() - start
    facts = {
        "command": command,
        "machine": where,
        "seconds": round(seconds, 1),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in experiment.packages},
        "settings": asdict(settings),
        "seeds": list(seeds),
        "records": [asdict(r) for r in records],
    }
    shown = table(records, experiment.figures)
    caption = f"`{command}`: mean ± standard deviation over {len(seeds)} seeds; {seconds:.0f} s ({where})."
    (folder / f"{experiment.name}.json").write_text(json.dumps(facts, indent=1) + "\n")
    written(folder / f"{experiment.name}.md", f"{shown}\n\n{caption}")
    if experiment.picture:
        experiment.picture(records, folder / f"{experiment.name}.png")
    print(f"\n{shown}\n\n{caption}\nWritten to {folder}.")
    return records
