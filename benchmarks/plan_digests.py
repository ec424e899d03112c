"""Digests of plans, exported files and reports of a fixed set of small runs, to show that a change of the code changes no result.

Everything is generated, so that no file is needed. Digests hold for one processor and one set of installed versions: make them before
and after the change, on the same machine.

    python benchmarks/plan_digests.py --out before.json
    python benchmarks/plan_digests.py --compare before.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

import cfptq
from cfptq import datasets
from cfptq.actions import ActionSet, Continuous
from cfptq.training import QAT_METHODS

#: Rows of the synthetic data set that are calibrated on, and people that are judged by.
CALIBRATION_ROWS, TEST_ROWS = 600, 300
#: Columns of the convolutional network's input, as (channels, height, width).
IMAGE = (1, 6, 6)
BATCH = 100

#: Keywords of ``calibrate``, so that no run follows a default.
SETTINGS: dict[str, Any] = {
    "portable": False,
    "repair": False,
    "layers": None,
    "groups": None,
    "activation_bits": None,
    "input_bits": None,
    "max_rows": 4096,
    "seed": 0,
    "progress": False,
}


class Material:
    """Generated people, the networks that decide about them, and what people can change."""

    @cached_property
    def people(self) -> datasets.Dataset:
        return datasets.load("synthetic", seed=0)

    @cached_property
    def columns(self) -> datasets.Columns:
        return datasets.encode(self.people)

    @cached_property
    def actions(self) -> ActionSet:
        return ActionSet.from_frame(
            self.people.train,
            immutable=["age", "sex"],
            increase_only=["education"],
            ordinal=self.people.ordinal,
            max_changes=3,
            favourable=self.people.favourable,
        ).encoded_by(self.columns.encoder)

    @cached_property
    def linear(self) -> nn.Module:
        """Fit a multilayer perceptron by plain gradient descent, so that its weights depend on nothing but PyTorch."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(self.columns.train.shape[1], 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 2))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(self.columns.train), self.columns.train_labels).backward()
            optimizer.step()
        return model.eval()

    @cached_property
    def batches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        rows, labels = self.columns.train[:CALIBRATION_ROWS], self.columns.train_labels[:CALIBRATION_ROWS]
        return list(zip(rows.split(BATCH), labels.split(BATCH), strict=True))

    @cached_property
    def test_batches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        rows, labels = self.columns.test[:TEST_ROWS], self.columns.test_labels[:TEST_ROWS]
        return list(zip(rows.split(BATCH), labels.split(BATCH), strict=True))

    @cached_property
    def convolutional(self) -> nn.Module:
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Unflatten(1, IMAGE),
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(6, 2),
        )
        model(torch.cat(self.pixels))
        return model.eval()

    @cached_property
    def pixels(self) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        return list(torch.randn(300, 36, generator=generator).split(BATCH))

    @cached_property
    def pixel_actions(self) -> ActionSet:
        features = [Continuous(f"x{column}", column=column) for column in range(36)]
        return ActionSet.from_columns(torch.cat(self.pixels), features, max_changes=4, favourable=1)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def canonical(content: Any) -> str:
    """SHA-256 of plain values as JSON that depends on the values alone."""
    return sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def of_file(path: Path) -> str:
    """Compute the SHA-256 of a file, for safetensors files that of their content, because their metadata may stand in any order."""
    if path.suffix != ".safetensors":
        return sha256(path.read_bytes())
    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        parts = {name: [str(tensor.dtype), list(tensor.shape), sha256(tensor.numpy().tobytes())] for name, tensor in tensors.items()}
        return canonical([file.metadata(), parts])


def of_result(result: cfptq.Result, **export: Any) -> dict[str, str]:
    """Compute the digests of a plan, of its file, and of the file that the saved and loaded result writes."""
    digests = {"plan": result.plan.digest}
    with TemporaryDirectory() as place:
        folder = Path(place)
        result.to_onnx(folder / "model.onnx", **export)
        digests["onnx"] = of_file(folder / "model.onnx")
        result.prepared_onnx(folder / "prepared.onnx")
        digests["prepared"] = of_file(folder / "prepared.onnx")
        result.save(folder / "plan")
        cfptq.load(folder / "plan").to_onnx(folder / "again.onnx", **export)
        digests["loaded"] = of_file(folder / "again.onnx")
        for path in sorted((folder / "plan").rglob("*")):
            if path.is_file():
                digests[f"saved {path.relative_to(folder / 'plan').as_posix()}"] = of_file(path)
    return digests


def calibrated(material: Material, method: str | cfptq.Method, **keywords: Any) -> cfptq.Result:
    budget = None if "max_validity_drop" in keywords else 4.0
    return cfptq.calibrate(material.linear, material.batches, material.actions, method=method, **{**SETTINGS, "budget": budget, **keywords})


def convolved(material: Material, method: str, **keywords: Any) -> cfptq.Result:
    return cfptq.calibrate(
        material.convolutional, material.pixels, material.pixel_actions, method=method, **{**SETTINGS, "budget": 4.0, **keywords}
    )


def trained(material: Material, method: str) -> cfptq.Result:
    """Train for two epochs."""
    preset = QAT_METHODS[method]
    short = replace(preset, schedule=replace(preset.schedule, epochs=2, least_steps=0))
    return cfptq.qat(
        material.linear,
        material.batches,
        material.actions,
        method=short,
        budget=4.0,
        activation_bits=8,
        portable=False,
        seed=0,
        progress=False,
    )


def audited(material: Material) -> dict[str, str]:
    """Audit two files against each other."""
    result = calibrated(material, "mixed-ptq", budget=3.0)
    people = material.people.test.iloc[:TEST_ROWS]
    with TemporaryDirectory() as place:
        folder = Path(place)
        result.to_onnx(folder / "model.onnx")
        report = cfptq.audit(
            material.linear,
            folder / "model.onnx",
            people,
            material.actions,
            groups=["sex"],
            label=material.people.test_labels[:TEST_ROWS].tolist(),
            seed=0,
            progress=False,
        )
        report.to_json(folder / "report.json")
        # The name of the temporary file stands in no digest.
        content = (folder / "report.json").read_text(encoding="utf-8").replace(json.dumps(str(folder))[1:-1], "")
    return {"report": sha256(content.encode())}


def compared(material: Material) -> dict[str, str]:
    """Compare three methods and a toolchain's own quantization."""
    table = cfptq.compare(
        material.linear,
        material.batches,
        material.test_batches,
        material.actions,
        methods=("ort-int8", "mixed-ptq", "cf-ptq", "faithful"),
        budgets=(4.0, 3.0),
        max_rows=4096,
        seed=0,
        dataset="synthetic",
        progress=False,
    )
    return {"results": canonical(table.to_dict())}


#: Name -> how its digests are made.
RUNS: dict[str, Callable[[Material], dict[str, str]]] = {
    **{
        method: lambda material, method=method: of_result(calibrated(material, method))
        for method in ("faithful", "ptq", "mixed-ptq", "cf-ptq-calibration", "cf-ptq-allocation", "cf-ptq")
    },
    "faithful, portable": lambda material: of_result(calibrated(material, "faithful", portable=True)),
    "faithful, repair": lambda material: of_result(calibrated(material, "faithful", budget=3.0, repair=True)),
    "faithful, groups": lambda material: of_result(calibrated(material, "faithful", budget=3.0, groups="housing")),
    "faithful, layers": lambda material: of_result(calibrated(material, "faithful", layers={"4": 8})),
    "faithful, total bits": lambda material: of_result(calibrated(material, "faithful", budget=cfptq.Budget.total(4000))),
    "faithful, bytes": lambda material: of_result(calibrated(material, "faithful", budget=cfptq.Budget.bytes(600)), storage="plain"),
    "faithful, max_validity_drop": lambda material: of_result(calibrated(material, "faithful", max_validity_drop=0.1)),
    "faithful, float activations": lambda material: of_result(calibrated(material, "faithful", activation_bits=32), weight_only=True),
    "faithful, convolutional": lambda material: of_result(convolved(material, "faithful")),
    "cf-ptq, convolutional": lambda material: of_result(convolved(material, "cf-ptq", portable=True)),
    "compensated, Hessian trace": lambda material: of_result(
        calibrated(
            material,
            cfptq.Method("own", rows="augmented", score="hessian-trace", allocator="greedy", rounding="compensated", equalize=True),
        )
    ),
    "cfq-qat": lambda material: of_result(trained(material, "cfq-qat")),
    "cfq-learned": lambda material: of_result(trained(material, "cfq-learned")),
    "audit": audited,
    "compare": compared,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file to write; without it the JSON is printed")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="earlier output; exit with 1 and list what differs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    material = Material()
    made = {name: run(material) for name, run in RUNS.items()}
    text = json.dumps(made, indent=1) + "\n"
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")
    if arguments.compare is None:
        if arguments.out is None:
            print(text, end="")
        return 0
    before = json.loads(arguments.compare.read_text(encoding="utf-8"))
    differences = [
        f"{name}: {part}"
        for name in {**before, **made}
        for part in {**before.get(name, {}), **made.get(name, {})}
        if before.get(name, {}).get(part) != made.get(name, {}).get(part)
    ]
    print("\n".join(differences) or f"all digests of {len(made)} runs are the same")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
