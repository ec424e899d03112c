"""Running a recipe, and the extras of the first steps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cfptq.experiments.recipe import Experiment, Recipe
    from cfptq.pipeline.comparison import Comparison


def compared(recipe: Recipe, experiment: Experiment, out: Path) -> Comparison:
    """The recipe's methods and budgets on one seed's model."""
    from cfptq import api

    columns = experiment.columns
    return api.compare(
        experiment.model,
        [(columns.train, columns.train_labels)],
        [(columns.test, columns.test_labels)],
        experiment.action_set,
        methods=recipe.methods or api.COMPARED,
        budgets=recipe.budgets,
        groups=experiment.groups,
        max_rows=recipe.calibration.rows,
        seed=experiment.seed,
        dataset=experiment.dataset.name,
        keep=out,
    )


def write_audit_inputs(experiment: Experiment, out: Path) -> None:
    """What ``cfptq audit`` asks for: the full-precision model, the people, and the action set."""
    from cfptq.io.atomic import atomic_write, write_text
    from cfptq.network import capture, to_onnx_model

    network = capture(experiment.model, experiment.columns.test[:2])
    with atomic_write(out / "fp32.onnx") as aside:
        aside.write_bytes(to_onnx_model(network).SerializeToString(deterministic=True))
    write_text(out / "people.csv", experiment.dataset.test.assign(label=experiment.dataset.test_labels).to_csv(index=False))
    experiment.action_set.save(out / "actions.yaml")


def one_promise(experiment: Experiment, out: Path) -> list[str]:
    """How much advice the usual 4-bit file breaks and how much ours, and one person's whose advice only ours keeps, in words."""
    from cfptq.network import as_predictor, decide
    from cfptq.recourse import solve

    rows, favourable = experiment.columns.test, experiment.dataset.favourable
    teacher = as_predictor(experiment.model, example=rows)
    rejected = rows[decide(teacher.logits(rows)) != favourable]
    advice = solve(teacher, rejected, experiment.action_set, target=favourable, method="projected-gradient", seed=experiment.seed)
    advice = advice[advice.found]
    usual, ours = (
        decide(as_predictor(file_of(out, name), example=rows).logits(advice.points)) == favourable for name in ("ort-int4", "faithful")
    )
    lines = [
        f"{len(advice)} generated applicants were refused and told what to change. That advice fails {int((~usual).sum())} of them "
        f"on the usual 4-bit file (ort-int4) and {int((~ours).sum())} on faithful's."
    ]
    between = (~usual & ours).nonzero().flatten()
    if len(between):
        one = between[:1]
        words = experiment.action_set.describe(advice.factual[one], advice.delta[one])[0]
        lines.append(f"One of them was told: {words}. Full precision would now say yes, so does faithful's file; ort-int4 says no.")
    return lines


def file_of(out: Path, method: str) -> Path:
    """The file that a comparison kept of a method: its headline budget's, where it has one."""
    return next(path for path in (out / f"{method}-4.onnx", out / f"{method}.onnx") if path.exists())
