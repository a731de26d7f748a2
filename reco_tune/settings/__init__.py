"""Settings: what a person may choose, checked at the door. Knows nothing of torch, Ray or files other than YAML."""

from reco_tune.settings.experiment import Experiment, flatten
from reco_tune.settings.files import (
    arm_experiment,
    load_experiment,
    load_space,
    make_experiment,
    parse_overrides,
    read_yaml,
    save_space,
)
from reco_tune.settings.grids import HOLISTIC, TokenGrid
from reco_tune.settings.sections import (
    FSQ_LEVELS,
    PRESETS,
    PRETRAINED,
    Data,
    Evaluation,
    Model,
    Objective,
    Resources,
    Sampling,
    Tokenizer,
    Training,
    Window,
)
from reco_tune.settings.space import ARMS, BASELINE, PROXIES, RUNG_CLIPS, Bound, Pruning, Range, Sampler, Space

__all__ = [
    "ARMS",
    "BASELINE",
    "FSQ_LEVELS",
    "HOLISTIC",
    "PRESETS",
    "PRETRAINED",
    "PROXIES",
    "RUNG_CLIPS",
    "Bound",
    "Data",
    "Evaluation",
    "Experiment",
    "Model",
    "Objective",
    "Pruning",
    "Range",
    "Resources",
    "Sampler",
    "Sampling",
    "Space",
    "TokenGrid",
    "Tokenizer",
    "Training",
    "Window",
    "arm_experiment",
    "flatten",
    "load_experiment",
    "load_space",
    "make_experiment",
    "parse_overrides",
    "read_yaml",
    "save_space",
]
