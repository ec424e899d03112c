"""The paper's tables and figures with the place that measures each here, and where the code deviates from the paper.

``tables.py`` writes both tables into ``benchmarks/README.md``. A test checks that every script, results file and option named here exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MEASURED, PARTLY, NUMBERS, WORDS, OPEN = "measured", "in part", "as numbers", "no experiment", "not yet"


@dataclass(frozen=True)
class Exhibit:
    """One table or figure of the paper.

    Attributes:
        name: "Table 1" or "Figure 3".
        topic: What it shows.
        state: "measured", "in part", "as numbers" (a figure whose numbers stand in a table), "no experiment" (words alone) or "not yet".
        scripts: Scripts in ``benchmarks/`` that measure it.
        results: Files in ``benchmarks/results/`` that hold it.
        section: Heading of the section of ``benchmarks/README.md``.
        remark: What is missing or different.
    """

    name: str
    topic: str
    state: str
    scripts: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    section: str = ""
    remark: str = ""


TRAINING, JUDGED, FREE = "Training", "Training by boundary disagreement", "Training-free methods on the reporting seeds (Tables 13, 14, 15)"
ROBUST, COST = "Recourse: robust (Table 12)", "Success of recourse against its cost (Figure 9)"
GROUPS = "Groups, and margins at recourse points (Tables 8, 9, 26; Figures 6, 7, 23, 24)"
DATA, SCORES, TIMES = "Data sets and action sets (Tables 3, 4)", "Layer scores (Figure 13)", "Time of every method (Table 16)"
IMAGES, _IMAGES = "Images and attributes (Tables 27, 29, 30, 31)", ("images.py",)
_GROUPS, _GROUPS_JSON = ("subgroups.py",), ("subgroups.json",)
_QAT, _BOTH = ("qat.py",), ("training.json", "qat.json")
_HEADLINE = ("headline.py",)
SHIFT = "Tightness of the action set, and distribution shift (Tables 24, 25; Figures 18 to 22)"
_SHIFT, _SHIFT_JSON = ("tightness_and_shift.py",), ("tightness_and_shift.json",)
_HEADLINE_ALL = ("headline-adult.json", "headline-german.json", "headline-compas.json")
_OPEN_ROWS = "earlier rows were the untrained start"

#: The paper's Tables 1 to 32 and Figures 3 to 26. Figures 1 and 2 are drawings.
EXHIBITS: tuple[Exhibit, ...] = (
    Exhibit("Table 1", "training: accuracy, VD, CRG on three data sets", MEASURED, _QAT, _BOTH, TRAINING),
    Exhibit(
        "Table 2", "training: ablation on adult", PARTLY, _QAT, ("training.json",), JUDGED, "η = 0 and K = 3; not uniform bits and K = 1"
    ),
    Exhibit("Table 3", "data sets", MEASURED, ("data_sets.py",), ("data_sets.json",), DATA),
    Exhibit("Table 4", "action sets", MEASURED, ("data_sets.py",), ("data_sets.json",), DATA),
    Exhibit("Table 5", "training on five data sets", MEASURED, _QAT, _BOTH, TRAINING),
    Exhibit("Table 6", "other networks", MEASURED, _QAT, ("qat.json",), TRAINING),
    Exhibit("Table 7", "other costs", MEASURED, _QAT, ("qat.json",), TRAINING),
    Exhibit("Table 8", "groups of people", MEASURED, _GROUPS, _GROUPS_JSON, GROUPS),
    Exhibit("Table 9", "worst group and gaps", MEASURED, _GROUPS, _GROUPS_JSON, GROUPS),
    Exhibit("Table 10", "training time by K", MEASURED, _QAT, ("qat.json",), TRAINING, "adult alone"),
    Exhibit("Table 11", "networks trained for robust recourse", MEASURED, _QAT, ("qat.json",), TRAINING),
    Exhibit("Table 12", "robust recourse", MEASURED, ("robust_recourse.py",), ("robust_recourse.json",), ROBUST),
    Exhibit("Table 13", "training-free methods on adult", MEASURED, _HEADLINE, ("headline-adult.json",), FREE),
    Exhibit("Table 14", "training-free methods on three data sets", MEASURED, _HEADLINE, _HEADLINE_ALL, FREE),
    Exhibit("Table 15", "ablation of CF-PTQ", MEASURED, _HEADLINE, ("headline-adult.json",), FREE),
    Exhibit("Table 16", "time of training-free methods", MEASURED, ("method_times.py",), ("method_times.json",), TIMES),
    Exhibit("Table 17", "K = 1 and 3", PARTLY, _QAT, ("training.json",), JUDGED, f"K = 3; {_OPEN_ROWS}"),
    Exhibit("Table 18", "noise on the teacher's actions", OPEN, remark=_OPEN_ROWS),
    Exhibit("Table 19", "findings on the teacher, in words", WORDS),
    Exhibit("Table 20", "training time, cached teacher", MEASURED, _QAT, ("qat.json",), TRAINING, "adult alone"),
    Exhibit("Table 21", "ways to save time, in words", WORDS),
    Exhibit("Table 22", "kinds of methods, in words", WORDS),
    Exhibit("Table 23", "pruning and distillation, in words", WORDS, _QAT, _BOTH, TRAINING, "here with figures"),
    Exhibit("Table 24", "tightness of the action set", PARTLY, _SHIFT, _SHIFT_JSON, SHIFT, "without CFQ"),
    Exhibit("Table 25", "distribution shift", PARTLY, _SHIFT, _SHIFT_JSON, SHIFT, "without CFQ"),
    Exhibit("Table 26", "groups on three data sets", MEASURED, _GROUPS, _GROUPS_JSON, GROUPS),
    Exhibit("Table 27", "settings on images and attributes", PARTLY, _IMAGES, ("images.json",), IMAGES, "not ResNet-18"),
    Exhibit("Table 28", "methods on images, in words", WORDS),
    Exhibit("Table 29", "methods on images and attributes", PARTLY, _IMAGES, ("images.json",), IMAGES, "without training"),
    Exhibit("Table 30", "budgets on images and attributes", PARTLY, _IMAGES, ("images.json",), IMAGES, "MNIST alone"),
    Exhibit("Table 31", "quality of actions on images", PARTLY, _IMAGES, ("images.json",), IMAGES, "without training"),
    Exhibit("Table 32", "findings on images, in words", WORDS),
    Exhibit("Figure 3", "VD by budget", MEASURED, _QAT, ("qat.json", "qat_curves.svg"), TRAINING),
    Exhibit("Figure 4", "VD by budget, five data sets", PARTLY, _QAT, ("qat.json", "qat_curves.svg"), TRAINING, "not bank and german"),
    Exhibit("Figure 5", "CRG by budget, five data sets", PARTLY, _QAT, ("qat.json", "qat_curves.svg"), TRAINING, "not bank and german"),
    Exhibit("Figure 6", "VD of groups", MEASURED, _GROUPS, ("subgroups.json", "subgroups.svg"), GROUPS),
    Exhibit("Figure 7", "margins at recourse points", MEASURED, _GROUPS, ("subgroups.json", "margins.svg"), GROUPS),
    Exhibit("Figure 8", "widths of layers", MEASURED, _QAT, ("qat.json", "qat_bits.svg"), TRAINING),
    Exhibit(
        "Figure 9",
        "success against cost",
        MEASURED,
        ("success_and_cost.py",),
        ("success_and_cost.json", "success_and_cost.svg"),
        COST,
    ),
    Exhibit("Figure 10", "VD of Table 13", NUMBERS, _HEADLINE, ("headline-adult.json",), FREE),
    Exhibit("Figure 11", "CRG of Table 13", NUMBERS, _HEADLINE, ("headline-adult.json",), FREE),
    Exhibit("Figure 12", "VD against time", OPEN),
    Exhibit("Figure 13", "scores of layers", MEASURED, ("layer_scores.py",), ("layer_scores.json", "layer_scores.svg"), SCORES),
    Exhibit("Figure 14", "VD and CRG of Table 17", OPEN),
    Exhibit("Figure 15", "accuracy of Table 17", OPEN),
    Exhibit("Figure 16", "VD and CRG of Table 18", OPEN),
    Exhibit("Figure 17", "times of Table 20", NUMBERS, _QAT, ("qat.json",), TRAINING),
    *(Exhibit(f"Figure {number}", "tightness of the action set", NUMBERS, _SHIFT, _SHIFT_JSON, SHIFT) for number in range(18, 21)),
    *(Exhibit(f"Figure {number}", "distribution shift", NUMBERS, _SHIFT, _SHIFT_JSON, SHIFT) for number in range(21, 23)),
    Exhibit("Figure 23", "VD of groups on three data sets", MEASURED, _GROUPS, ("subgroups.json", "subgroups.svg"), GROUPS),
    Exhibit("Figure 24", "CRG of groups on three data sets", NUMBERS, _GROUPS, _GROUPS_JSON, GROUPS),
    *(Exhibit(f"Figure {number}", "images and attributes", OPEN) for number in range(25, 27)),
)


@dataclass(frozen=True)
class Deviation:
    """One place where the code does not do what the paper says.

    Attributes:
        paper: What the paper says.
        here: What the code does.
        reason: Why.
        module: The module that does it, below the repository's root.
        name: A name in that module.
        option: The option that reproduces the paper, "–" where there is none.
        rows: Whether the paper's rows use that option, and why not.
    """

    paper: str
    here: str
    reason: str
    module: str
    name: str
    option: str
    rows: str


_GRADIENT, _PRESETS, _STUDENT = "cfptq/recourse/gradient.py", "cfptq/training/presets.py", "cfptq/training/student.py"

#: Deviations from the paper, in the order of its sections.
DEVIATIONS: tuple[Deviation, ...] = (
    Deviation("VD over all test points (3.3)", "over at most 2,000 rejected people with recourse on f", "the accepted need no recourse",
              "cfptq/auditing/protocol.py", "max_people", "`Protocol(max_people=None)`; the accepted never count",
              "no: VD over people without recourse would be a share of another kind"),
    Deviation("eq. 6: each step is projected", "unprojected steps are summed, and the sum is projected",
              "projecting every step onto hard one-hot columns undoes small steps", _GRADIENT, "accumulate", "`accumulate=False`",
              "`cfq-paper`: yes. Evaluation and `cf-ptq`: no, see the figures below"),
    Deviation("eq. 6: raw gradients", "each gradient is scaled to unit max-norm", "steps of one size on every network",
              _GRADIENT, "normalize", "`normalize=False`", "as above"),
    Deviation("step size α, not given", "0.3 for scaled steps; 1 for `cfq-paper`'s literal ones",
              "0.3 of a literal step reaches almost nobody on german, bank and default", _PRESETS, "step_size", "`step_size=…`",
              "the row `cfq-paper, alpha=10` shows what it decides"),
    Deviation("Algorithm 1: top-k over coordinates", "over features, compared in units of cost", "a mask over columns tears one-hot groups",
              "cfptq/actions/projection.py", "Sparsity counts features", "–", "no option"),
    Deviation("A.3: CRG and DirSim by more steps of eq. 6", "by a search for the least cost, the same for f and f_q",
              "gradient steps stop anywhere behind the boundary", "cfptq/auditing/protocol.py", "minimal_cost", "–", "no option"),
    Deviation("Algorithm 2, eqs. 20, 21: an action for every row", "for rows that f rejects",
              "whoever is accepted needs none", "cfptq/training/supervision.py", "rejected", "–",
              "no option: L_valid is the mean over the rejected"),
    Deviation("4.2: η and λ by grid search", "η = 1, and λ as a share of the budget", "one run in place of 16",
              _PRESETS, "etas", "`QatMethod(etas=(.25, .5, 1, 2), bit_weights=(1e-4, 1e-3, .01, .1))`",
              "no: 4 to 16 times the time. “Eq. 6 to the letter” has rows with η so chosen"),
    Deviation("4.3: the policy is learned until the end", "for 30 % of the epochs; then widths are fixed", "the rest trains what is kept",
              "cfptq/training/schedule.py", "search", "`Schedule(search=…)` below 1", "no: the end must be within the budget"),
    Deviation("4.3: b = arg max π", "the most likely widths within the budget, by a knapsack", "arg max π may be over the budget",
              "cfptq/training/bit_policy.py", "discretize_policy", "–", "no option; `overshot` tells where they differ by the budget"),
    Deviation("4.3: widths of activations are learned", "8 bits, float input where the first layer is narrow",
              "integer kernels have 8 bits", "cfptq/training/student.py", "LearnedClip", "–", "no option"),
    Deviation("4.4: integers from −2^(b−1)", "the narrow range ±(2^(b−1) − 1)", "the one range that all five hand-overs hold",
              "cfptq/quantize/formats.py", "integer_limit", "–", "no option"),
    Deviation("4.4: one step per layer", "one per output channel", "all toolchains have one per channel", _PRESETS, "per_channel",
              "`QatMethod(per_channel=False)`; none without training",
              "`cfq-paper`: yes. Baselines: no, it would weaken them"),
    Deviation("4.4: PACT clips at 0 below", "at −α where the tensor has negative values", "inputs are signed",
              "cfptq/training/learned_quantizers.py", "quantize_pact", "–", "no option"),
    Deviation("widths 2, 3, 4, 8", "7 in place of 8 behind integer inputs (weights within ±63)", "right on processors without VNNI",
              "cfptq/pipeline/train_task.py", "portable", "`portable=False`", "training: yes. `headline.py`: no"),
    Deviation("weights are free", "zeros and signs of weights are kept", "a promise that a network makes",
              "cfptq/quantize/structure.py", "STRUCTURE", "`keep=()`",
              "training: yes. Without training rounding to nearest keeps both by itself"),
    Deviation("the last epoch", "the epoch of least loss on a held-out tenth of the rows, or the start",
              "the paper says nothing about overfitting", "cfptq/training/trainer.py", "best_epoch", "–",
              "no option; the column “kept” names the epoch"),
    Deviation("nothing limits the drift", "our methods keep an epoch only within 0.5 points of drift",
              "accepting everybody keeps all recourse", "cfptq/training/schedule.py", "max_drift", "`Schedule(max_drift=None)`",
              "yes; `cfq-paper, drift guard` shows the guard"),
    Deviation("training starts from f", "from the plan of plain PTQ, which the policy prefers at first", "fewer epochs",
              _STUDENT, "class Start", "`start_log_odds=0` for the policy", "no"),
    Deviation("H.2: structured pruning, masks by both losses", "unstructured, the smallest weights, fixed at the start",
              "the paper gives no experiment", _STUDENT, "def prune", "–", "no option"),
    Deviation("E.1: LSQ-QAT or mixed precision after robust training", "mixed precision with logit distillation",
              "labels would undo the robustness", _PRESETS, "DISTILLATION", "`QatMethod(objective=Objective(eta=0))`", "no"),
    Deviation("E.2: a surrogate loss over sampled models", "the least cost at which all sampled models accept",
              "success on the sample is then certain", "cfptq/recourse/robustness.py", "def robust", "–", "no option"),
    Deviation("F: MixedPrec by a score of its own", "eq. 23 with the task loss on factual rows", "the paper does not define it",
              "cfptq/allocation/gradient_norm.py", "score_by_factual_gradient", "–", "no option"),
)  # fmt: skip


def _table(heads: list[str], rows: Iterator[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def index() -> Iterator[str]:
    """Yield the table of the paper's tables and figures."""

    def cells(exhibit: Exhibit) -> list[str]:
        where = ", ".join(f"`{script}`" for script in exhibit.scripts)
        where = f"{where}: {exhibit.section}" if where else "–"
        return [exhibit.name, exhibit.topic, exhibit.state + (f" ({exhibit.remark})" if exhibit.remark else ""), where]

    yield from _table(["paper", "shows", "here", "script: section"], map(cells, EXHIBITS))


def deviations() -> Iterator[str]:
    """Yield the table of deviations from the paper."""
    heads = ["paper", "here", "why", "where", "option", "do the paper's rows use it"]
    yield from _table(heads, ([d.paper, d.here, d.reason, f"`{d.module}`", d.option, d.rows] for d in DEVIATIONS))
