"""The files of the Warcraft maps of Vlastelica et al., "Differentiation of blackbox combinatorial solvers", 2020.

They are not part of this project: https://doi.org/10.17617/3.YJCQ5S, `warcraft_maps.tar.gz`. Unpacked, a folder
`12x12`, `18x18`, ... holds for each of the parts `train`, `val` and `test`

    PART_maps.npy             (maps, 8 n, 8 n, 3)  pictures, 0 to 255
    PART_vertex_weights.npy   (maps, n, n)         what the tiles cost
    PART_shortest_paths.npy   (maps, n, n)         1 on a cheapest path from corner to corner, nobody in the way
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np


class Warcraft(NamedTuple):
    """One row a map, tiles row by row: (maps, tiles, pixels) from 0 to 1, costs and cheapest paths (maps, tiles)."""

    tiles: np.ndarray
    costs: np.ndarray
    paths: np.ndarray


def read_warcraft(folder: Path | str, size: int, part: str = "train", count: int | None = None) -> Warcraft:
    """The first `count` maps of a part, or all, from folder/12x12/train_maps.npy and its two neighbours.

    FileNotFoundError where a file is missing; ValueError where the shapes do not fit maps of size x size tiles.
    """
    place = Path(folder) / f"{size}x{size}"
    names = [place / f"{part}_{what}.npy" for what in ("maps", "vertex_weights", "shortest_paths")]
    missing = [str(name) for name in names if not name.exists()]
    if missing:
        raise FileNotFoundError(
            f"no {', '.join(missing)}: give the folder that holds {size}x{size}, of the unpacked maps."
        )
    maps, costs, paths = (np.load(name, mmap_mode="r")[:count] for name in names)
    if not (maps.ndim == 4 and maps.shape[1] == maps.shape[2] and maps.shape[1] % size == 0 and maps.shape[3] == 3):
        raise ValueError(
            f"{names[0]}: got an array of {maps.shape}, expected (maps, {size} p, {size} p, 3) for tiles of p x p."
        )
    for name, array in zip(names[1:], (costs, paths), strict=True):
        if array.shape != (len(maps), size, size):
            raise ValueError(f"{name}: got an array of {array.shape}, expected {(len(maps), size, size)}.")
    p = maps.shape[1] // size
    tiles = maps.reshape(-1, size, p, size, p, 3).swapaxes(2, 3).reshape(-1, size * size, p * p * 3)
    return Warcraft(
        tiles.astype(np.float32) / 255, *(a.reshape(-1, size * size).astype(np.float64) for a in (costs, paths))
    )
