import dataclasses
import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mae_export.errors import InputError, MachineError, UsageError
from mae_export.manifest import TensorSpec
from mae_export.runtime import features
from mae_export.runtime.features import (
    FeaturesManifest,
    FeaturesWriter,
    check_feature_names,
    read_features,
    read_manifest,
)
from mae_export.runtime.shards import Row, Shard

SPECS = (
    TensorSpec(name="pooled", dtype="float32", shape=(3,)),
    TensorSpec(name="patch_tokens", dtype="float32", shape=("K", 2)),
)


def row(index: int, keep: int | None = None) -> Row:
    tokens = {} if keep is None else {"patch_tokens": np.full((keep, 2), index + 0.5, np.float32)}
    return Row(
        index=index,
        item_id=f"{index}.png",
        arrays={"pooled": np.full(3, index, np.float32), **tokens},
        ids_keep=None if keep is None else np.arange(keep, dtype=np.int64),
    )


def manifest(shards: tuple[Shard, ...], failed: int = 0, **changes: Any) -> FeaturesManifest:
    stored = sum(shard.rows for shard in shards)
    values: dict[str, Any] = {
        "model": "vit.onnx", "model_sha256": "0" * 64, "family": "mae", "precision": "fp32", "runtime": "fake",
        "features": SPECS[:1], "visible": "all", "format": "npy", "rows_in": stored + failed, "rows_ok": stored,
        "rows_failed": failed, "shards": shards, "version": "0", "started": "2024-01-01T00:00:00+00:00", "seconds": 1.0,
    }  # fmt: skip
    return FeaturesManifest(**{**values, **changes})


def write(folder: Path, rows: list[Row], **options: Any) -> FeaturesManifest:
    with FeaturesWriter(folder, **options) as writer:
        for one in rows:
            writer.add(one)
        specs = tuple(spec for spec in SPECS if spec.name in rows[0].arrays)
        written = manifest(writer.finish(), features=specs, format=options.get("format", "npy"))
        writer.write_manifest(written)
    return written


@pytest.mark.parametrize("format_", ["npy", "parquet"])
def test_what_is_read_is_what_was_written(tmp_path: Path, format_: str) -> None:
    out = tmp_path / "deep" / "out"
    written = write(out, [row(i) for i in range(7)], format=format_, shard_rows=3)
    assert [shard.rows for shard in written.shards] == [3, 3, 1]
    found = read_features(out)
    assert found.manifest == written
    assert found.ids == tuple(f"{i}.png" for i in range(7))
    assert found.arrays["pooled"].tolist() == [[i] * 3 for i in range(7)]
    assert found.arrays["pooled"].dtype == np.float32
    assert found.ids_keep is None
    assert (out / "failures.jsonl").read_bytes() == b""


@pytest.mark.parametrize("format_", ["npy", "parquet"])
def test_rows_of_different_length_are_padded_over_all_shards(tmp_path: Path, format_: str) -> None:
    write(tmp_path / "out", [row(0, 1), row(1, 2), row(2, 3)], format=format_, shard_rows=2)
    found = read_features(tmp_path / "out", "patch_tokens")
    assert found.ids_keep is not None
    assert found.ids_keep.tolist() == [[0, -1, -1], [0, 1, -1], [0, 1, 2]]
    assert list(found.arrays) == ["patch_tokens"]
    assert found.arrays["patch_tokens"][..., 0].tolist() == [[0.5, 0, 0], [1.5, 1.5, 0], [2.5, 2.5, 2.5]]


def test_rows_inside_a_shard_are_in_listing_order(tmp_path: Path) -> None:
    write(tmp_path, [row(i) for i in (2, 0, 1, 5, 4, 3)], shard_rows=3)
    assert read_features(tmp_path).ids == ("0.png", "1.png", "2.png", "3.png", "4.png", "5.png")
    assert read_features(tmp_path).arrays["pooled"][:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_shards_are_closed_by_bytes_counting_the_padding(tmp_path: Path) -> None:
    equal = write(tmp_path / "equal", [row(i) for i in range(6)], shard_bytes=24)  # 12 bytes a row
    assert [shard.rows for shard in equal.shards] == [2, 2, 2]
    # A row of 10 patches takes 12 + 10 * 8 + 10 * 8 = 172 bytes, and so does every row that is padded to it.
    ragged = write(tmp_path / "ragged", [row(0, 1), row(1, 1), row(2, 10), row(3, 1)], shard_bytes=3 * 172)
    assert [shard.rows for shard in ragged.shards] == [3, 1]


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, [row(i, 2) for i in range(4)]) for name in "ab")
    assert first.shards == second.shards


def test_failures_are_on_disk_at_once(tmp_path: Path) -> None:
    with FeaturesWriter(tmp_path) as writer:
        writer.fail("a\n\udcff.png", "truncated", "the data ends too early")
        writer.fail("b.png", "truncated", "…")
        lines = (tmp_path / "failures.jsonl").read_text("ascii").splitlines()
        assert [json.loads(line) for line in lines] == [
            {"id": "a\n\udcff.png", "reason": "truncated", "message": "the data ends too early"},
            {"id": "b.png", "reason": "truncated", "message": "…"},
        ]
        assert writer.failures == {"truncated": 2}


def test_a_folder_without_rows_is_complete_and_empty(tmp_path: Path) -> None:
    with FeaturesWriter(tmp_path) as writer:
        writer.fail("a.png", "empty", "0 bytes")
        writer.write_manifest(manifest(writer.finish(), failed=1, features=SPECS))
    found = read_features(tmp_path)
    assert found.ids == ()
    assert found.arrays["pooled"].shape == (0, 3)
    assert found.arrays["patch_tokens"].shape == (0, 0, 2)


def test_a_folder_without_manifest_did_not_finish(tmp_path: Path) -> None:
    with FeaturesWriter(tmp_path, shard_rows=1) as writer:
        writer.add(row(0))
    with pytest.raises(InputError, match=r"has no manifest.json: the extraction did not finish"):
        read_features(tmp_path)


def test_an_unknown_feature_is_answered_with_those_there_are(tmp_path: Path) -> None:
    write(tmp_path, [row(0, 2)])
    with pytest.raises(InputError, match="has no feature 'cls'; it has: pooled, patch_tokens"):
        read_features(tmp_path, "pooled", "cls")


def test_a_missing_shard_and_a_changed_file_are_refused(tmp_path: Path) -> None:
    write(tmp_path, [row(0), row(1)], shard_rows=1)
    (tmp_path / "shard-00000.ids.jsonl").write_text('"other.png"\n')
    with pytest.raises(InputError, match=r"shard-00000.ids.jsonl differs from its SHA-256"):
        read_features(tmp_path)
    (tmp_path / "shard-00000.ids.jsonl").write_text('"0.png"\n')
    (tmp_path / "shard-00001.pooled.npy").unlink()
    with pytest.raises(InputError, match=r"shard-00001.pooled.npy is missing"):
        read_features(tmp_path)


def test_a_manifest_that_miscounts_is_refused(tmp_path: Path) -> None:
    written = write(tmp_path, [row(0), row(1)])
    with pytest.raises(InputError, match="counts 3 images, 2 rows, 2 of them in shards, and 0 failures"):
        dataclasses.replace(written, rows_in=3)
    (shard,) = written.shards
    longer = dataclasses.replace(written, shards=(dataclasses.replace(shard, rows=3),), rows_in=3, rows_ok=3)
    (tmp_path / "manifest.json").write_text(json.dumps(dataclasses.asdict(longer)))
    with pytest.raises(InputError, match="ids of shard 0 has 2 rows; expected 3"):
        read_features(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "expected an object"),
        ('{"schema": 2}', "has schema 2, this version reads 1"),
        ('{"schema": 1, "modle": "x"}', "unknown key 'modle'; did you mean 'model'"),
    ],
)
def test_manifests_that_are_not_ours_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        read_manifest(tmp_path)


def test_a_folder_in_use_is_refused_without_force(tmp_path: Path) -> None:
    write(tmp_path, [row(0)])
    with pytest.raises(UsageError, match="is not empty; choose another folder, or pass --force"):
        FeaturesWriter(tmp_path)
    assert read_features(tmp_path).ids == ("0.png",)


def test_force_replaces_features_and_leftovers(tmp_path: Path) -> None:
    write(tmp_path, [row(0), row(1)], shard_rows=1)
    (tmp_path / ".shard-00002.pooled.npy.tmp").touch()
    write(tmp_path, [row(5)], force=True)
    assert read_features(tmp_path).ids == ("5.png",)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["failures.jsonl", "manifest.json", "shard-00000.ids.jsonl", "shard-00000.pooled.npy"]
    (tmp_path / "manifest.json").unlink()  # as after a crash
    write(tmp_path, [row(6)], force=True)
    assert read_features(tmp_path).ids == ("6.png",)


def test_replacing_first_removes_what_says_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [row(0)])
    unlink = Path.unlink

    def failing(path: Path, missing_ok: bool = False) -> None:
        if path.name != "manifest.json":
            raise PermissionError(errno.EACCES, "Permission denied")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", failing)
    with pytest.raises(InputError, match="Permission denied"):
        FeaturesWriter(tmp_path, force=True)
    with pytest.raises(InputError, match="did not finish"):
        read_features(tmp_path)


@pytest.mark.parametrize("name", ["notes.txt", "shard-00000.pooled.npy.bak.zip", "images/a.png", "manifest.json"])
def test_force_never_deletes_what_is_not_ours(tmp_path: Path, name: str) -> None:
    write(tmp_path, [row(0)])
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"name": "another program"}')
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=r"holds '.*', which is not part of a features folder; nothing was deleted"):
        FeaturesWriter(tmp_path, force=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_or_an_unwritable_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file; give a folder"):
        FeaturesWriter(tmp_path / "file", force=True)
    with pytest.raises(InputError, match=r"cannot write .*: Not a directory"):
        FeaturesWriter(tmp_path / "file" / "below")


def test_parquet_without_pyarrow_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise MachineError("no pyarrow")

    monkeypatch.setattr(features, "require_pyarrow", missing)
    with pytest.raises(MachineError, match="no pyarrow"):
        FeaturesWriter(tmp_path / "out", format="parquet")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../evil", "a/b", "ids_keep", "ids", "id", "", "a.b", "é"])
def test_outputs_that_cannot_name_a_file_are_refused(name: str) -> None:
    check_feature_names(("pooled", "layer_11"))
    with pytest.raises(InputError, match="cannot be stored"):
        check_feature_names(("pooled", name))
