"""The grids of HIGGS that come with the package, made by scripts/make_higgs_grid.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# name -> (dimensions of a point, points); bits per coordinate are log2(points) / dimensions
GRIDS = {
    "d2n256": (2, 256),
    "d2n64": (2, 64),
    "d2n16": (2, 16),
    "d4n256": (4, 256),
    "d8n4096": (8, 4096),
    "d8n256": (8, 256),
    "d4n16": (4, 16),
}


def load_grid(name: str) -> npt.NDArray[np.float32]:
    """The points of one grid, every value exact in float16.

    Shapes: float32 [points, dimensions].
    Raises: ValueError for an unknown name or a damaged file.
    """
    import numpy as np

    if name not in GRIDS:
        raise ValueError(f"there is no HIGGS grid {name!r}: choose one of {', '.join(GRIDS)}")
    path = Path(__file__).parent / "data" / f"higgs_{name}.npy"
    try:
        grid = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"the grid {path.name} cannot be read ({error}): install yakvrt again") from error
    dim, n_points = GRIDS[name]
    if grid.dtype != np.float32 or grid.shape != (n_points, dim) or not np.isfinite(grid).all():
        raise ValueError(f"the grid {path.name} is damaged: install yakvrt again")
    return np.ascontiguousarray(grid)
