import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest

from mae_export.errors import InputError, MachineError
from mae_export.runtime.parquet import read_parquet, require_pyarrow, write_parquet
from mae_export.runtime.shards import Row, Shard

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
STEM = "shard-00000"


def rows(*keeps: int, dtype: str = "float32") -> list[Row]:
    return [
        Row(
            index=index,
            item_id=f"café {index}.png",
            arrays={
                "pooled": np.arange(3).astype(dtype) + index,
                "patch_tokens": np.arange(2 * keep).reshape(keep, 2).astype(dtype) + 100 * index,
            },
            ids_keep=np.arange(keep, dtype=np.int64) + index,
        )
        for index, keep in enumerate(keeps)
    ]


def test_equal_rows_become_lists_of_fixed_size(tmp_path: Path) -> None:
    write_parquet(tmp_path, STEM, rows(2, 2))
    table = pq.read_table(tmp_path / f"{STEM}.parquet")  # as any other reader would
    assert table["id"].to_pylist() == ["café 0.png", "café 1.png"]
    assert table["pooled"].to_pylist() == [[0, 1, 2], [1, 2, 3]]
    assert table["patch_tokens"].to_pylist() == [[0, 1, 2, 3], [100, 101, 102, 103]]
    assert table["ids_keep"].to_pylist() == [[0, 1], [1, 2]]
    assert table.schema.field("pooled").type == pa.list_(pa.float32(), 3)
    assert table.schema.field("patch_tokens").metadata[b"shape"] == b"[2, 2]"


def test_unequal_rows_become_lists_without_padding(tmp_path: Path) -> None:
    files = write_parquet(tmp_path, STEM, rows(1, 3))
    table = pq.read_table(tmp_path / f"{STEM}.parquet")
    assert table["ids_keep"].to_pylist() == [[0], [1, 2, 3]]
    assert table["patch_tokens"].to_pylist() == [[0, 1], [100, 101, 102, 103, 104, 105]]
    assert table.schema.field("pooled").type == pa.list_(pa.float32(), 3)
    assert table.schema.field("patch_tokens").metadata[b"shape"] == b"[-1, 2]"
    _, arrays = read_parquet(tmp_path, STEM, Shard(rows=2, files=files), ["patch_tokens"])
    assert arrays["ids_keep"].tolist() == [[0, -1, -1], [1, 2, 3]]
    assert arrays["patch_tokens"].tolist() == [[[0, 1], [0, 0], [0, 0]], [[100, 101], [102, 103], [104, 105]]]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int16"])
def test_what_is_read_is_what_was_written(tmp_path: Path, dtype: str) -> None:
    written = rows(2, 2, 2, dtype=dtype)
    files = write_parquet(tmp_path, STEM, written)
    assert files == {f"{STEM}.parquet": hashlib.sha256((tmp_path / f"{STEM}.parquet").read_bytes()).hexdigest()}
    ids, arrays = read_parquet(tmp_path, STEM, Shard(rows=3, files=files), ["pooled", "patch_tokens"])
    assert ids == [row.item_id for row in written]
    for name in ("pooled", "patch_tokens"):
        assert arrays[name].dtype == dtype
        assert np.array_equal(arrays[name], np.stack([row.arrays[name] for row in written]))


def test_rows_that_differ_along_two_axes_are_refused(tmp_path: Path) -> None:
    squares = [Row(index=i, item_id=str(i), arrays={"a": np.zeros((i + 1, i + 1))}, ids_keep=None) for i in range(2)]
    with pytest.raises(InputError, match=r"differ along two axes.*use --format npy"):
        write_parquet(tmp_path, STEM, squares)
    assert not list(tmp_path.iterdir())


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / f"{STEM}.parquet"
    for table in ({"pooled": [[1.0]]}, {"id": ["a"], "pooled": [[1.0]]}, {"id": ["a"]}):
        pq.write_table(pa.table(table), path)
        shard = Shard(rows=1, files={path.name: hashlib.sha256(path.read_bytes()).hexdigest()})
        with pytest.raises(InputError, match="is not a features shard of ours"):
            read_parquet(tmp_path, STEM, shard, ["pooled"])
    path.write_bytes(b"PAR1 but not really")
    shard = Shard(rows=1, files={path.name: hashlib.sha256(path.read_bytes()).hexdigest()})
    with pytest.raises(InputError, match="is not a features shard of ours"):
        read_parquet(tmp_path, STEM, shard, ["pooled"])


def test_without_pyarrow_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MachineError, match=r"pip install 'mae-export\[parquet\]'"):
        require_pyarrow()
