"""The false alarms of random draws: what is drawn, and how it is counted."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.doctor import alarms
from benchmarks.doctor.alarms import Flags, draws, table
from benchmarks.doctor.training import Data


def drawn(size: int, *found: str) -> dict[str, object]:
    return {"size": size, "found": list(found)}


def test_warnings_are_counted_by_size():
    rows = [drawn(64), drawn(64, "order-leak"), drawn(8, "order-leak", "train-eval-gap"), drawn(8)]
    assert table(rows).splitlines()[2:] == [
        "| 8 | 2 | 1 | `order-leak` 1, `train-eval-gap` 1 |",
        "| 64 | 2 | 1 | `order-leak` 1 |",
        "| all | 4 | 2 | `order-leak` 2, `train-eval-gap` 1 |",
    ]


def test_the_documented_table_is_that_of_the_record():
    docs = Path(__file__).parents[2] / "docs"
    record = docs / "results" / "doctor_alarms_cpu_20261130.jsonl"
    rows = [json.loads(line) for line in record.read_text().splitlines()[1:]]
    assert table(rows) in (docs / "doctor_benchmark.md").read_text()


def test_a_draw_says_what_spoke_and_is_the_same_for_one_seed(monkeypatch, tmp_path):
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(512, 3, 64, generator=generator), torch.randint(0, 10, (512,), generator=generator)
    data = Data(train=(x, labels), validation=(x, labels), test=(x, labels))
    monkeypatch.setattr(alarms, "data_of", lambda kind, folder: data)
    monkeypatch.setattr(alarms, "SIZES", (32,))
    made = []

    def network(name, seed, data, folder):
        torch.manual_seed(seed)
        model = alarms.ARCHITECTURES["signal"].build()
        model.features[1].running_var[0] = -1.0 if name == "signal" else 1.0
        made.append((name, seed))
        return model.eval()

    monkeypatch.setattr(alarms, "trained", network)
    monkeypatch.setattr(alarms, "ARCHITECTURES", {"signal": alarms.ARCHITECTURES["signal"]})
    first, again = (list(draws(Flags(out=tmp_path, draws=3))) for _ in range(2))
    assert first == again and len(first) == 3 and made[:3] == made[3:]
    assert all("negative-variance" in draw.found and draw.size == 32 for draw in first)


@pytest.mark.parametrize("half", ["tuning", "held out"])
def test_batches_too_small_to_train_on_are_given_in_evaluation(half, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(alarms, "diagnose", lambda model, batches, metric: seen.append((model.training, batches)) or ())
    monkeypatch.setattr(alarms, "trained", lambda *_: torch.nn.Identity())
    x, labels = torch.randn(512, 3, 4), torch.zeros(512, dtype=torch.long)
    monkeypatch.setattr(alarms, "data_of", lambda *_: Data(train=(x, labels), validation=(x, labels), test=(x, labels)))
    list(draws(Flags(out=tmp_path, draws=20, half=half)))
    assert {training for training, _ in seen} == {True, False}
    assert all(len(batches[0][0]) >= alarms.TRAINING for training, batches in seen if training)


def test_networks_and_their_number_can_be_chosen(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(alarms, "diagnose", lambda *_, **__: ())
    monkeypatch.setattr(alarms, "trained", lambda name, seed, *_: made.append((name, seed)) or torch.nn.Identity())
    x, labels = torch.randn(512, 3, 4), torch.zeros(512, dtype=torch.long)
    monkeypatch.setattr(alarms, "data_of", lambda *_: Data(train=(x, labels), validation=(x, labels), test=(x, labels)))
    list(draws(Flags(out=tmp_path, draws=5, only=("speaker", "eegnet"), seeds=1)))
    assert made == [("speaker", 0), ("eegnet", 0)] * 5
