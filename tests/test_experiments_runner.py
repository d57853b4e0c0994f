"""The runner of the experiments: every method with every seed, the table, the files."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import runner
import torch


@dataclass(frozen=True)
class Settings:
    scale: float


def run(method: float, seed: int, settings: Settings) -> dict[str, float]:
    return {"cost": settings.scale * method + seed, "draw": torch.rand(()).item()}


EXPERIMENT = runner.Experiment("toy", {"one": 1.0, "two": 2.0}, run, Settings(10.0), Settings(1.0), {"cost": ".2f"})


def test_every_method_runs_with_every_seed_from_the_same_generator():
    records = runner.collect(EXPERIMENT, Settings(10.0), range(3))
    costs = {(r.method, r.seed): r.figures["cost"] for r in records}
    assert costs == {(name, seed): 10 * m + seed for name, m in EXPERIMENT.methods.items() for seed in range(3)}
    assert {len({r.figures["draw"] for r in records if r.seed == seed}) for seed in range(3)} == {1}


def test_table_has_mean_and_sample_deviation_with_the_longer_side_downwards():
    records = runner.collect(EXPERIMENT, Settings(10.0), range(3))
    assert runner.table(records, {"cost": ".2f"}).splitlines()[2] == "| one | 11.00 ± 1.00 |"
    down = runner.table([runner.Record("one", 0, {"a": 1, "b": 2}, 0.0)], {"a": ".0f", "b": ".0f"})
    assert down.splitlines() == ["|  | one |", "| --- | --- |", "| a | 1 |", "| b | 2 |"]


def test_files_hold_what_was_run_and_the_page_keeps_its_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "toy.md"
    page.write_text(f"Before.\n{runner.BEGIN}\nold\n{runner.END}\nAfter.\n")
    for arguments, scale, seeds in ((["--quick"], 1.0, 2), (["--seeds", "3"], 10.0, 3)):
        runner.main(EXPERIMENT, [*arguments, "--out", str(tmp_path)])
        facts = json.loads((tmp_path / "toy.json").read_text())
        assert facts["settings"] == {"scale": scale}
        assert facts["seeds"] == list(range(seeds))
        assert len(facts["records"]) == 2 * seeds
        assert facts["command"] == f"python examples/bigrad_paper/toy.py {' '.join(arguments)}"
        assert math.isclose(facts["records"][-1]["figures"]["cost"], 2 * scale + seeds - 1)
        text = page.read_text()
        assert text.startswith("Before.\n")
        assert text.endswith("\nAfter.\n")
        assert "old" not in text
        assert f"over {seeds} seeds" in text
        assert str(tmp_path) not in text
        assert "| two |" in capsys.readouterr().out
