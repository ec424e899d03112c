"""Recourse on images and attributes, Tables 27, 29, 30 and 31 of the paper, on MNIST, Fashion-MNIST and CelebA's attributes.

People are test images, an action moves the code of a convolutional autoencoder (eqs. 39 and 40), and the classifier is a network with two
convolutions. On MNIST any digit is led to the digit 3, on Fashion-MNIST a shirt to a T-shirt. Networks are trained once and stored in
``benchmarks/networks/images/``; those of development seeds are trained where they are needed.

    CFPTQ_DATA_DIR=... python benchmarks/images.py --train                                # networks of the reporting seeds
    CFPTQ_DATA_DIR=... python benchmarks/images.py --reason "..."                         # not run yet
    CFPTQ_DATA_DIR=... python benchmarks/images.py --seeds 0 --out /tmp/images.json
    python benchmarks/images.py --show
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import reporting
import safetensors.torch
import torch
from headline import get_figure
from torch import Tensor, nn

from cfptq.actions import LatentActionSet, SemanticActionSet
from cfptq.auditing import Protocol, reference_recourse
from cfptq.auditing.evaluation import evaluate_in_detail
from cfptq.datasets.images import as_rows, load_celeba_attributes, load_images
from cfptq.errors import ConfigurationError, FileError
from cfptq.io.files import compute_file_sha256, read_json
from cfptq.models import MLP, Autoencoder, SmallCNN, TrainingSettings, train
from cfptq.network.onnx.session import describe_runtime
from cfptq.pipeline.deploy import deploy_all
from cfptq.pipeline.task import TaskSettings, build_task
from cfptq.recourse import RecourseBatch

OUT = reporting.RESULTS / "images.json"
NETWORKS = reporting.NETWORKS / "images"
#: Seeds that figures are reported for. Settings were chosen on seed 0.
REPORTING_SEEDS = tuple(reporting.IMAGE_REPORTING_SEEDS["mnist"])
#: Data set -> classes that are told apart (None for all), and the place of the target among them.
TASKS: Mapping[str, tuple[tuple[int, ...] | None, int]] = {"mnist": (None, 3), "fashion-mnist": ((6, 0), 1), "celeba": (None, 1)}
#: CelebA: the attribute that is predicted, those that stay fixed, the budget, and the published split of the table.
CELEBA_LABEL, CELEBA_FIXED, CELEBA_BUDGET = "Attractive", ("Male", "Young", "Pale_Skin"), 4.0
CELEBA_TRAIN, CELEBA_TEST = 40_000, 182_637
METHODS = ("ort-int8", "ort-int4", "ptq", "cf-ptq", "faithful")
CURVED = ("ptq", "cf-ptq", "faithful")
HEADLINE, OTHER_BUDGETS = 4.0, (8.0, 3.0)
CALIBRATION_ROWS, TEST_ROWS, PEOPLE = 512, 2000, 150
CODE, RADIUS, MAX_CHANGE, PIXEL_COST = 16, 8.0, 150.0, 0.01
TRAINING = TrainingSettings(epochs=3, batch_size=64)
AUTOENCODER_STEPS, AUTOENCODER_SEED = 1500, 0
#: The paper's CF-PTQ and CFQ-QAT (Table 29): accuracy, VD, CRG.
PAPER = {
    "mnist": {"cf-ptq": (0.989, 0.063, 0.084), "cfq-qat": (0.990, 0.041, 0.052)},
    "fashion-mnist": {"cf-ptq": (0.913, 0.096, 0.124), "cfq-qat": (0.914, 0.071, 0.091)},
    "celeba": {"cf-ptq": (0.898, 0.112, 0.146), "cfq-qat": (0.899, 0.083, 0.109)},
}
FIGURES = (
    "boundary_disagreement", "validity_drop", "premature_validity", "recourse_gap", "favourable_rate_drift", "direction_similarity",
    "accuracy",
)  # fmt: skip


@dataclass(frozen=True)
class Images:
    """What one seed measures.

    Attributes:
        train: rows that calibration rows are drawn from.
        train_labels: their classes.
        test: people.
        test_labels: their classes.
        model: the classifier.
        space: moves of the autoencoder's code, or edits of attributes.
        target: the class that recourse leads to.
        digests: SHA-256 of the stored networks by their files.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    model: nn.Module
    space: LatentActionSet | SemanticActionSet
    target: int
    digests: Mapping[str, str]


def prepare(name: str, seed: int, folder: Path) -> Images:
    """Load the data, and train what is not stored in ``folder``."""
    if name == "celeba":
        return _prepare_attributes(seed, folder)
    classes, target = TASKS[name]
    data = load_images(name)
    coder, coder_path = Autoencoder(code=CODE, seed=AUTOENCODER_SEED), folder / f"{name}-autoencoder.safetensors"
    if not coder_path.exists():
        train_autoencoder(coder, as_rows(data.train))
        _store(coder, coder_path)
    data = data if classes is None else data.choose_classes(classes)
    rows = as_rows(data.train)
    model, path = SmallCNN(classes=len(data.label_names), seed=seed), folder / f"{name}-{seed}.safetensors"
    _fit(model, path, rows, data.train_labels, seed)
    coder.load_state_dict(safetensors.torch.load_file(coder_path))
    coder.eval()
    space = LatentActionSet(
        coder.encoder, coder.decoder, (1, 28, 28), RADIUS, max_change=MAX_CHANGE, pixel_cost=PIXEL_COST, favourable=target
    )
    digests = {file.name: compute_file_sha256(file) for file in (coder_path, path)}
    return Images(rows, data.train_labels, as_rows(data.test), data.test_labels, model, space, target, digests)


def _prepare_attributes(seed: int, folder: Path) -> Images:
    """Predict one attribute of CelebA from the others, on the published split of the table. No image is read."""
    table = load_celeba_attributes()
    label = table.names.index(CELEBA_LABEL)
    others = [place for place in range(len(table.names)) if place != label]
    values = torch.from_numpy(table.values)
    rows, labels = values[:, others].float(), values[:, label].long()
    train_rows, train_labels = rows[:CELEBA_TRAIN], labels[:CELEBA_TRAIN]
    path = folder / f"celeba-{seed}.safetensors"
    model = MLP(len(others), seed=seed)
    _fit(model, path, train_rows, train_labels, seed)
    names = tuple(table.names[place] for place in others)
    space = SemanticActionSet(names, CELEBA_BUDGET, fixed=CELEBA_FIXED, favourable=1)
    digests = {path.name: compute_file_sha256(path)}
    return Images(train_rows, train_labels, rows[CELEBA_TEST:], labels[CELEBA_TEST:], model, space, 1, digests)


def _fit(model: nn.Module, path: Path, rows: Tensor, labels: Tensor, seed: int) -> None:
    """Load a classifier, which is trained and stored first where it is missing."""
    if not path.exists():
        train(model, rows, labels, seed=seed, settings=TRAINING, progress=False)
        _store(model, path)
    model.load_state_dict(safetensors.torch.load_file(path))
    model.eval()


def train_autoencoder(coder: Autoencoder, rows: Tensor) -> None:
    """Train an autoencoder by the squared error on seeded batches."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(AUTOENCODER_SEED)
    optimizer = torch.optim.Adam(coder.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, AUTOENCODER_STEPS)
    for _ in range(AUTOENCODER_STEPS):
        batch = rows[torch.randint(len(rows), (64,), generator=generator)]
        loss = nn.functional.mse_loss(coder(batch), batch, reduction="sum") / len(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def measure(seed: int, images: Images, budgets: Sequence[float], methods: Sequence[str]) -> dict[str, Any]:
    """Quantize by each method and judge the files on test images that the network refuses.

    Returns:
        Figures by budget and method, and those of recourse on the network itself.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images.train), generator=generator)[:CALIBRATION_ROWS]
    tested = torch.randperm(len(images.test), generator=generator)[:TEST_ROWS]
    rows, labels = images.test[tested], images.test_labels[tested].numpy()
    loader = [(images.train[chosen], images.train_labels[chosen])]
    task = build_task(images.model, loader, images.space, TaskSettings(max_rows=CALIBRATION_ROWS, seed=seed, progress=False))
    protocol = Protocol(max_people=PEOPLE, confidences=(0.5,), resamples=200)
    teacher = reference_recourse(task.predictor, rows, images.space, images.target, protocol, seed, threads=1, progress=False)

    def judge(student: Any, path: Path, **formats: Any) -> dict[str, Any]:
        evaluation = evaluate_in_detail(task.predictor, student, teacher, rows, labels, images.space, threads=1, progress=False)
        metrics = evaluation.metrics.to_dict()
        return {
            **{figure: get_figure(metrics, figure) for figure in FIGURES},
            **describe_actions(images.space, evaluation.own),
            "average_bits": formats["average_bits"],
            "stored_bytes": path.stat().st_size,
            "with_recourse": metrics["counts"]["with_recourse"],
        }

    with tempfile.TemporaryDirectory() as folder:
        done = deploy_all(task, methods, budgets, Path(folder), judge, progress=False)
    return {
        "budgets": done.budgets,
        "unavailable": done.unavailable,
        "seconds": {key: round(value, 1) for key, value in done.seconds.items()},
        "fp32": {"accuracy": get_figure(teacher.to_dict(labels), "accuracy"), **describe_actions(images.space, teacher.plain)},
        "networks": dict(images.digests),
    }


def describe_actions(space: LatentActionSet | SemanticActionSet, batch: RecourseBatch | None) -> dict[str, float | None]:
    """Return the mean cost, length and consistency of the actions found (Table 31).

    Consistency is 1 less the mean distance, in units of a pixel's range, between a changed image and its own reconstruction.
    """
    if batch is None or not bool((batch.found & (batch.cost > 0)).any()):
        return {"action_cost": None, "latent_norm": None, "consistency": None}
    acting = batch.found & (batch.cost > 0)
    consistency = None
    if space.coder is not None:
        points = batch.points[acting]
        with torch.no_grad():
            again = space.coder.decode(space.coder.encode(points))
        consistency = 1 - float((again - points).abs().mean())
    return {
        "action_cost": float(batch.cost[acting].mean()),
        "latent_norm": float(batch.delta[acting].norm(dim=1).mean()),
        "consistency": consistency,
    }


def _store(network: nn.Module, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)


def summarize(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarize each figure of each budget and method over the seeds that have it."""
    summary: dict[str, Any] = {}
    for run in runs:
        for budget, methods in run["budgets"].items():
            for method in methods:
                summary.setdefault(budget, {}).setdefault(method, {})
    for budget, methods in summary.items():
        for method in methods:
            entries = [run["budgets"][budget][method] for run in runs if method in run["budgets"].get(budget, {})]
            methods[method] = {
                figure: reporting.summarize([entry[figure] for entry in entries]).to_dict()
                for figure, value in entries[0].items()
                if not isinstance(value, dict | list)
            }
    return summary


def _format(figure: Mapping[str, Any], digits: int = 3) -> str:
    if figure["mean"] is None:
        return "–"
    spread = "" if figure["std"] is None else f" ± {figure['std']:.{digits}f}"
    return f"{figure['mean']:.{digits}f}{spread}"


def markdown(results: Mapping[str, Any]) -> Iterator[str]:
    """Write the tables, each figure as mean ± standard deviation over seeds."""
    heads = ("BD", "VD", "PV", "CRG", "drift", "DirSim", "accuracy", "action cost", "latent norm", "consistency", "bytes")
    keys = (
        "boundary_disagreement", "validity_drop", "premature_validity", "recourse_gap", "favourable_rate_drift", "direction_similarity",
        "accuracy", "action_cost", "latent_norm", "consistency",
    )  # fmt: skip
    for name, content in results["datasets"].items():
        runs = content["runs"]
        people = sum(next(iter(run["budgets"][str(HEADLINE)].values()))["with_recourse"] for run in runs)
        accuracy = reporting.summarize([run["fp32"]["accuracy"] for run in runs])
        own = {key: reporting.summarize([run["fp32"][key] for run in runs]).to_dict() for key in keys[-3:]}
        yield (
            f"\n**{name}**, seeds {', '.join(str(run['seed']) for run in runs)}, {people:,} people with recourse. Full precision: accuracy "
            f"{accuracy.mean:.3f}, action cost {_format(own['action_cost'])}, latent norm {_format(own['latent_norm'])}, consistency "
            f"{_format(own['consistency'])}. The paper's CF-PTQ and CFQ-QAT have VD {PAPER[name]['cf-ptq'][1]:.3f} and "
            f"{PAPER[name]['cfq-qat'][1]:.3f}.\n"
        )
        yield f"| bits | method | {' | '.join(heads)} |"
        yield "|" + "---|" * (2 + len(heads))
        for budget, methods in content["summary"].items():
            for method in sorted(methods, key=lambda method: methods[method]["boundary_disagreement"]["mean"]):
                figures = methods[method]
                if method.startswith("ort-") and budget != str(HEADLINE):
                    continue
                cells = [_format(figures[key]) for key in keys]
                count = figures["boundary_disagreement"]["seeds"]
                few = "" if count == len(runs) else f" ({count} of {len(runs)} seeds)"
                yield (
                    f"| {figures['average_bits']['mean']:.2f} | {method}{few} | {' | '.join(cells)} | "
                    f"{figures['stored_bytes']['mean']:,.0f} |"
                )
        yield f"\n{judge_bar(content['summary'][str(HEADLINE)], accuracy.mean)}"


def judge_bar(methods: Mapping[str, Any], full: float | None) -> str:
    """Tell whether ``faithful`` at the headline budget meets what was asked of it."""
    drop = {method: figures["boundary_disagreement"]["mean"] for method, figures in methods.items()}
    others = {method: value for method, value in drop.items() if method not in ("faithful", "ort-int8")}
    best = min(others, key=lambda method: others[method])
    ratio = drop["faithful"] / others[best] if others[best] else float("inf")
    lost = (full or 0.0) - methods["faithful"]["accuracy"]["mean"]
    return (
        f"BD of `faithful` at 4 bits is {ratio:.2f} times that of the best other 4-bit method, {best}; at most 0.25 was asked. It is "
        f"{'below' if drop['faithful'] < drop['ort-int8'] else 'not below'} that of ONNX Runtime's INT8 ({drop['ort-int8']:.4f}). "
        f"Its accuracy is {abs(lost):.4f} {'below' if lost > 0 else 'above'} full precision."
    )


def run(names: Sequence[str], seeds: Sequence[int], out: Path, folder: Path) -> None:
    """Measure the headline budget of all seeds, then the other budgets, and write the file after each."""
    runs: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in names}
    prepared: dict[tuple[str, int], Images] = {}
    for budgets, methods in (((HEADLINE,), METHODS), (OTHER_BUDGETS, CURVED)):
        for seed in seeds:
            for name in names:
                if (name, seed) not in prepared:
                    prepared[name, seed] = prepare(name, seed, folder)
                found = measure(seed, prepared[name, seed], budgets, methods)
                entry = runs[name].setdefault(seed, {"seed": seed, **found, "budgets": {}})
                entry["budgets"] = {**entry["budgets"], **found["budgets"]}
                entry["seconds"] = {**entry["seconds"], **found["seconds"]}
                content = {
                    key: {"runs": list(value.values()), "summary": summarize(list(value.values()))} for key, value in runs.items() if value
                }
                settings = {
                    "calibration_rows": CALIBRATION_ROWS, "test_rows": TEST_ROWS, "people": PEOPLE, "radius": RADIUS,
                    "max_change": MAX_CHANGE, "pixel_cost": PIXEL_COST, "code": CODE,
                }  # fmt: skip
                reporting.write_results(out, {"datasets": content, "settings": settings, "runtime": describe_runtime()})
                print(f"{name} seed {seed}, {', '.join(f'{budget:g}' for budget in budgets)} bits", flush=True)


def main(arguments: Iterable[str] | None = None) -> None:
    """Train, measure, or show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(REPORTING_SEEDS))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--train", action="store_true", help="train the networks that are missing and leave")
    parser.add_argument("--show", action="store_true", help="print the tables of the results file and leave")
    reporting.add_reason(parser)
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    if chosen.show:
        print("\n".join(markdown(read_json(chosen.out))))
        return
    reports = [seed for seed in chosen.seeds if seed in REPORTING_SEEDS]
    if reports and len(reports) < len(chosen.seeds):
        raise ConfigurationError("Reporting seeds and development seeds must be run apart.")
    folder = NETWORKS if reports else reporting.DEVELOPMENT_NETWORKS / "images"
    warnings.simplefilter("ignore")
    if chosen.train:
        for name in chosen.datasets:
            for seed in chosen.seeds:
                prepare(name, seed, folder)
        return
    if reports:
        missing = [f"{name}-{seed}" for name in chosen.datasets for seed in reports if not (folder / f"{name}-{seed}.safetensors").exists()]
        if missing:
            raise FileError(f"{folder} holds no network of {', '.join(missing)}. Run python benchmarks/images.py --train.")
        reporting.start_run(chosen.out, dict.fromkeys(chosen.datasets, reports), chosen.reason)
    run(chosen.datasets, chosen.seeds, chosen.out, folder)


if __name__ == "__main__":
    main()
