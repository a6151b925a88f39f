"""The empty figure that every figure starts from."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def blank(width: float | int, height: float | int) -> Figure:
    """An empty figure, in inches, laid out so that nothing overlaps; no window, no global state.

    >>> blank(4, 3).get_size_inches().tolist()
    [4.0, 3.0]
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
