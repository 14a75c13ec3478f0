"""Analysis of models: what they are like, how two differ, and what a run of training did, as files or on mlflow.

`analyse` and `compare` measure, `save` writes a folder with figures and a page. `Run` keeps runs, and models that load
back with ``mlflow.pyfunc``, on an mlflow server or in a database file. Needs ``pyrosys[analysis]``.
"""

from pyrosys.errors import MissingExtra

try:
    from pyrosys.analysis.attention import Heads, attention_maps, attention_statistics
    from pyrosys.analysis.calibration import Calibration, calibrate
    from pyrosys.analysis.comparison import Analysis, Change, Comparison, Similarity, analyse, compare
    from pyrosys.analysis.plots import figures, plot_attention_maps
    from pyrosys.analysis.report import save
    from pyrosys.analysis.similarity import linear_cka, representations, similarity_matrix
    from pyrosys.analysis.statistics import Summary, activation_statistics, weight_statistics
    from pyrosys.analysis.tracking import Run, load_model
except ModuleNotFoundError as error:
    raise MissingExtra.needed("analysis", error) from error

__all__ = [
    "Analysis",
    "Calibration",
    "Change",
    "Comparison",
    "Heads",
    "Run",
    "Similarity",
    "Summary",
    "activation_statistics",
    "analyse",
    "attention_maps",
    "attention_statistics",
    "calibrate",
    "compare",
    "figures",
    "linear_cka",
    "load_model",
    "plot_attention_maps",
    "representations",
    "save",
    "similarity_matrix",
    "weight_statistics",
]
