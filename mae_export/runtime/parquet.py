"""One shard of features as a Parquet file: a row per image, a list column per feature."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mae_export.errors import InputError, MachineError
from mae_export.runtime.padding import stack_padded
from mae_export.runtime.shards import IDS_KEEP, Row, Shard, fill_of, write_atomic

Array = npt.NDArray[Any]
SHAPE = b"shape"  # key of a field's metadata: JSON list, -1 on the axis in which rows differ


def require_pyarrow() -> tuple[Any, Any]:
    """`pyarrow` and `pyarrow.parquet`.

    Raises:
        MachineError: when they are not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise MachineError(
            "Parquet shards need pyarrow, which is not installed; run: pip install 'mae-export[parquet]', "
            "or use --format npy"
        ) from error
    return pa, pq


def write_parquet(folder: Path, stem: str, rows: Sequence[Row]) -> dict[str, str]:
    """Write `STEM.parquet` with the columns `id`, every feature flattened, and `ids_keep` where it is stored.

    Returns:
        SHA-256 by file name.
    """
    pa, pq = require_pyarrow()
    ids = pa.array([row.item_id for row in rows], pa.string())
    fields, data = [pa.field("id", pa.string(), nullable=False)], [ids]
    columns = [row.columns for row in rows]
    for name in columns[0]:
        values, shape = _column(pa, [column[name] for column in columns])
        fields.append(pa.field(name, values.type, nullable=False, metadata={SHAPE: json.dumps(shape)}))
        data.append(values)
    table = pa.Table.from_arrays(data, schema=pa.schema(fields))
    name = f"{stem}.parquet"
    # Floating-point features neither repeat nor compress: a dictionary would only cost time.
    return {
        name: write_atomic(
            folder / name, lambda file: pq.write_table(table, file, use_dictionary=False, compression="none")
        )
    }


def _column(pa: Any, arrays: list[Array]) -> tuple[Any, list[int]]:
    shapes = np.array([array.shape for array in arrays])
    varies = (shapes != shapes[0]).any(axis=0)
    flat = pa.array(np.concatenate([array.ravel() for array in arrays]))
    if not varies.any():
        return pa.FixedSizeListArray.from_arrays(flat, arrays[0].size), list(arrays[0].shape)
    if varies.sum() > 1:
        raise InputError("rows differ along two axes, which Parquet lists cannot hold; use --format npy")
    offsets = np.cumsum([0, *(array.size for array in arrays)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), flat), np.where(varies, -1, shapes[0]).tolist()


def read_parquet(folder: Path, stem: str, shard: Shard, names: Sequence[str]) -> tuple[list[str], dict[str, Array]]:
    """Read a shard that `write_parquet` wrote; see `shards.read_npy`.

    Raises:
        InputError: when the file is missing, damaged or lacks a column.
    """
    pa, pq = require_pyarrow()
    path = shard.open(folder, f"{stem}.parquet")
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            wanted = ["id", *names, *({IDS_KEEP} & set(schema.names))]
            table = file.read(columns=wanted)
        ids = table["id"].to_pylist()
        arrays = {name: _array(table[name], json.loads(schema.field(name).metadata[SHAPE])) for name in wanted[1:]}
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a features shard of ours ({error})") from error
    return ids, {name: stack_padded(rows, fill=fill_of(name)) for name, rows in arrays.items()}


def _array(column: Any, shape: list[int]) -> list[Array]:
    values = column.combine_chunks()
    flat = values.flatten().to_numpy()
    sizes = values.value_lengths().to_numpy()
    return [part.reshape(shape) for part in np.split(flat, np.cumsum(sizes)[:-1])]
