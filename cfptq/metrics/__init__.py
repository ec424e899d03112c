"""Recourse metrics of Section 3.3 and Appendices D.6, H.3 and J, with groups and confidence intervals.

All functions are pure. They take NumPy arrays, tensors or sequences. An undefined number is NaN.
"""

from cfptq.metrics.cost_gap import (
    EPSILON,
    pair_costs,
    recourse_gap,
    recourse_gap_abs_median,
    recourse_gap_median,
    recourse_gap_of_sums,
    relative_gaps,
)
from cfptq.metrics.groups import Disparity, disparity, group_rows
from cfptq.metrics.intervals import (
    Interval,
    Mean,
    Median,
    Proportion,
    RatioOfSums,
    Statistic,
    bootstrap_intervals,
    evaluate_statistic,
    wilson_interval,
)
from cfptq.metrics.population import (
    accuracy,
    correct_decisions,
    factual_flip_rate,
    factual_flips,
    favourable_changes,
    favourable_rate,
    favourable_rate_drift,
)
from cfptq.metrics.similarity import (
    SUPPORT_TOLERANCE,
    action_jaccards,
    action_overlap,
    direction_cosines,
    direction_similarity,
)
from cfptq.metrics.validity import (
    feasible_recourse_rate,
    label_mismatches,
    lost_recourse,
    recourse_lost_rate,
    target_failures,
    validity_drop,
    validity_mismatch,
)

__all__ = [
    "EPSILON",
    "SUPPORT_TOLERANCE",
    "Disparity",
    "Interval",
    "Mean",
    "Median",
    "Proportion",
    "RatioOfSums",
    "Statistic",
    "accuracy",
    "action_jaccards",
    "action_overlap",
    "bootstrap_intervals",
    "correct_decisions",
    "direction_cosines",
    "direction_similarity",
    "disparity",
    "evaluate_statistic",
    "factual_flip_rate",
    "factual_flips",
    "favourable_changes",
    "favourable_rate",
    "favourable_rate_drift",
    "feasible_recourse_rate",
    "group_rows",
    "label_mismatches",
    "lost_recourse",
    "pair_costs",
    "recourse_gap",
    "recourse_gap_abs_median",
    "recourse_gap_median",
    "recourse_gap_of_sums",
    "recourse_lost_rate",
    "relative_gaps",
    "target_failures",
    "validity_drop",
    "validity_mismatch",
    "wilson_interval",
]
