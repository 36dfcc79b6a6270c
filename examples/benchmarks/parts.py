"""What ca-hfp adds to the paper's form, taken away one at a time, and other methods with the same additions."""

from __future__ import annotations

from typing import Any

Study = dict[str, dict[str, Any]]
"""A variant's name -> the settings in which it differs."""

PARTS: Study = {
    "ca-hfp": {},
    "head start 1": {"head_start": 1.0},
    "server momentum 0": {"options": {"server_momentum": 0.0}},
    "shrink 0": {"options": {"shrink": 0.0}},
    "shrink 0.4 in every round": {"options": {"shrink_decays": False}},
    "calibration 0": {"options": {"calibration": 0.0}},
    "shrink 0.3 in every round, calibration 0": {
        "options": {"shrink": 0.3, "shrink_decays": False, "calibration": 0.0}
    },
    "fill": {"options": {"rule": "fill"}},
    "masks drawn apart": {"options": {"nested": False}},
    "masks drawn apart, fill": {"options": {"nested": False, "rule": "fill"}},
    "ca-hfp-paper": {"method": "ca-hfp-paper"},
    "fedavg": {"method": "fedavg"},
    "fedavgm": {"method": "fedavgm"},
    "fedavgm, calibration 0.05": {"method": "fedavgm", "options": {"calibration": 0.05}},
}
