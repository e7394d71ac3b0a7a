"""Which layers interact: the norms of the blocks of a matrix, as a map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm

from spectral_density.plotting.axes import COLORMAP, color_bar, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from spectral_density.analysis.interactions import InteractionMap

_DECADES = 6  # at most, below the largest norm
_WRITTEN = 6  # layers up to which norms are written into their cells
_LIGHT = 0.6  # of the colours' lightness, above which text is black


def plot_interactions(
    interactions: InteractionMap, ax: Axes | None = None, *, colormap: Any = COLORMAP
) -> Axes:
    """Draw the Frobenius norm of each block on a logarithmic colour scale.

    The share of the squared norm in the diagonal blocks is said above. Of up to six layers each
    cell has its norm.

    Args:
        interactions: see `interaction_map`.
        ax: axes to draw on; None for new ones. The colour bar is set beside them.
        colormap: colours of the norms.
    """
    ax = new_axes(ax, square=True)
    norms = interactions.norms
    top = float(norms.max()) or 1.0
    bottom = max(float(norms[norms > 0].min(initial=top)), top * 10.0**-_DECADES)
    bottom = bottom if bottom < top else top / 10
    norm, shown = LogNorm(bottom, top), np.maximum(norms, bottom)
    image = ax.imshow(shown, norm=norm, cmap=colormap)
    count = len(interactions.names)
    ax.set_xticks(range(count), interactions.names, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(count), interactions.names)
    ax.tick_params(length=0, labelsize="small")
    share = interactions.diagonal_share
    error = f" $\\pm$ {100 * share.standard_error:.1g}" if share.standard_error else ""
    title = f"{100 * share.value:.3g}{error} % of the squared norm on the diagonal"
    ax.set_title(title, fontsize="x-small")
    if count <= _WRITTEN:
        lightness = plt.get_cmap(colormap)(norm(shown))[..., :3]
        light = lightness @ (0.3, 0.6, 0.1) > _LIGHT
        for (row, column), value in np.ndenumerate(norms):
            color = "black" if light[row, column] else "white"
            style: dict[str, Any] = {
                "ha": "center",
                "va": "center",
                "fontsize": "x-small",
                "color": color,
            }
            ax.text(column, row, f"{value:.2g}", **style)
    color_bar(ax, image, "Frobenius norm")
    return ax
