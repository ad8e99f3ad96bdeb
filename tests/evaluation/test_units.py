"""Prompts in, batches out: the same ones whoever paints them, and whole files in the store."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.evaluation.blobs import PROMPTS, BlobSuite
from toprovar_compiler.errors import ArtifactError, OptionError
from toprovar_compiler.evaluation.identity import weights_digest
from toprovar_compiler.evaluation.painter import to_bytes, to_floats
from toprovar_compiler.evaluation.prompts import read_prompts
from toprovar_compiler.evaluation.store import Store
from toprovar_compiler.evaluation.units import make_batches
from toprovar_compiler.evaluation.variants import line_of, parse_variants, split_names


def test_seeds_follow_prompts_and_samples() -> None:
    batches = make_batches(["a", "b", "c"], samples=2, seed=10, size=4)
    units = [unit for batch in batches for unit in batch.units]
    assert [(u.text, u.sample, u.seed) for u in units] == [
        ("a", 0, 10), ("a", 1, 11), ("b", 0, 12), ("b", 1, 13), ("c", 0, 14), ("c", 1, 15)
    ]  # fmt: skip
    assert [batch.seed for batch in batches] == [10, 14]


def test_a_short_batch_is_filled_up() -> None:
    batches = make_batches(["a", "b", "c"], samples=1, seed=0, size=2)
    assert [batch.texts for batch in batches] == [["a", "b"], ["c", "c"]]
    assert [len(batch.units) for batch in batches] == [2, 1]


def test_no_batch_is_larger_than_the_run() -> None:
    (batch,) = make_batches(["a", "b"], samples=1, seed=0, size=8)
    assert batch.size == 2


def test_prompts_of_a_suite_and_of_a_file(tmp_path: Path) -> None:
    suite = BlobSuite(torch.device("cpu"))
    assert read_prompts("2", 1, suite) == list(PROMPTS[1:3])
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa cat\r\n\r\n  ein Ei  \n".encode())
    assert read_prompts(str(path), 0, None) == ["a cat", "ein Ei"]


def test_policies_come_once_and_dense_first() -> None:
    def names(wanted: list[str] | None) -> list[str]:
        return [variant.name for variant in parse_variants(wanted, {})]

    assert names(["toprovar", "random", "toprovar"]) == ["dense", "toprovar", "random"]
    assert set(names(None)) >= {"dense", "toprovar"}


def test_a_policy_may_have_options_of_its_own() -> None:
    text = (
        "toprovar[keep_ratio=0.5, restoration=bypass], toprovar[layer_budgets=[1,0],restoration=bypass],dense"
    )
    names = split_names(text)
    assert names[0] == "toprovar[keep_ratio=0.5,restoration=bypass]"
    dense, half, layers = parse_variants(names, {"keep_ratio": 0.3, "strict": True})
    assert (dense.policy, dense.options) == ("dense", {"keep_ratio": 0.3, "strict": True})
    assert (half.name, half.policy) == (names[0], "toprovar")
    assert half.options == {"keep_ratio": 0.5, "strict": True, "restoration": "bypass"}
    assert layers.options["layer_budgets"] == [1, 0]
    assert layers.options["keep_ratio"] == 0.3


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("toprovar[keep_ratio=0.5", ["closing bracket", "toprovar[keep_ratio=0.5,"]),
        ("toprovar[keep_ratio]", ["option=value", "'keep_ratio'"]),
        ("toprovar[]", ["option=value"]),
        ("toprovar[keep_ration=0.5]", ["unknown option 'keep_ration'", "did you mean 'keep_ratio'"]),
        ("toprovar[keep_ratio=2]", ["keep_ratio requires a number in (0, 1], got 2"]),
        ("toprovar[policy=dense]", ["other than the policy itself"]),
        ("toprova[keep_ratio=0.5]", ["policy requires one of", "'toprova'"]),
        ("", ["policy requires one of"]),
    ],
)
def test_a_policy_that_cannot_be_read(name: str, parts: list[str]) -> None:
    with pytest.raises(OptionError) as caught:
        parse_variants([name], {})
    for part in parts:
        assert part in str(caught.value)


def test_variants_that_differ_in_strength_are_one_line() -> None:
    assert line_of("toprovar") == "toprovar"
    assert line_of("toprovar[keep_ratio=0.5]") == "toprovar"
    assert line_of("toprovar[keep_ratio=[1,0.5],restoration=bypass]") == "toprovar[restoration=bypass]"
    assert line_of("fixed-exit[start_scale=6]") == "fixed-exit"


def test_a_name_with_a_path_stays_in_the_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (batch,) = make_batches(["a"], samples=1, seed=0, size=1)
    store.write_unit("skipvar[decisions=../a/b.json]", batch, {"x": 1})
    assert store.has("skipvar[decisions=../a/b.json]", batch)
    assert [path.parent.parent.name for path in tmp_path.rglob("*.json")] == ["units"]


def test_pictures_survive_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (batch,) = make_batches(["a", "b"], samples=1, seed=0, size=2)
    pictures = to_bytes(torch.rand(2, 3, 5, 7))
    store.write_pictures("dense", batch.units, pictures)
    assert torch.equal(store.read_pictures("dense", batch.units), pictures)
    assert torch.equal(to_bytes(to_floats(pictures)), pictures)
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["00000-00.png", "00001-00.png"]


def test_records_survive_the_store_to_the_last_bit(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (batch,) = make_batches(["a"], samples=1, seed=0, size=1)
    assert not store.has("dense", batch)
    record = {"pictures": [{"features": torch.rand(9).tolist(), "mse": 0.1 + 0.2}]}
    store.write_unit("dense", batch, record)
    assert store.has("dense", batch)
    assert store.read_unit("dense", batch) == record


def test_an_unfinished_file_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    (batch,) = make_batches(["a"], samples=1, seed=0, size=1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.write_unit("dense", batch, {})
    assert not store.has("dense", batch)
    with pytest.raises(ArtifactError, match="cannot be read"):
        store.read_unit("dense", batch)


def test_weights_digest_sees_every_bit() -> None:
    model = torch.nn.Linear(3, 2, dtype=torch.bfloat16)
    before = weights_digest(model)
    assert weights_digest(model) == before
    model.bias.data[1] = model.bias.data[1].nextafter(torch.tensor(9.0, dtype=torch.bfloat16))
    assert weights_digest(model) != before
