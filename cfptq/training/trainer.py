"""The training loop of a student, which can resume from a checkpoint."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from cfptq.allocation import Budget
from cfptq.errors import ModelError
from cfptq.io.progress import track
from cfptq.network import DecisionRule, Network, as_predictor
from cfptq.quantize import Bits, Granularity, read_bits
from cfptq.training.bit_policy import BitCost, BitPolicy, compute_mean_bits, discretize_policy, score_by_policy
from cfptq.training.checkpoint import Checkpoint, get_optimizer_tensors, restore_optimizer
from cfptq.training.distributed import Workers
from cfptq.training.history import History
from cfptq.training.objective import Objective, build_margin_target, compute_loss_terms
from cfptq.training.run_files import RunFiles
from cfptq.training.schedule import Schedule, create_generator
from cfptq.training.student import Student
from cfptq.training.student_recourse import count_affordable_people, find_student_recourse
from cfptq.training.supervision import Batch, Supervision
from cfptq.training.validation import ValidationMetrics, validate_student


@dataclass(frozen=True)
class PolicySearch:
    """Settings of learning the widths along with the weights.

    Attributes:
        policy: π, trained along with the student.
        cost: the resource term of the loss.
        weight: λ, the weight of ``cost``.
        budget: the budget that the final widths must meet.
        network: the network whose layers the policy chooses widths for.
        pinned: layer name to the width that it keeps.
        granularity: what the policy chooses widths for.
    """

    policy: BitPolicy
    cost: BitCost
    weight: float
    budget: Budget
    network: Network
    pinned: dict[str, int] = field(default_factory=dict)
    granularity: Granularity = "layer"


class Trainer:
    """One training run of a student.

    ``fit`` is the loop. Trainers of other frameworks call ``begin_epoch``, ``compute_step_loss``, ``end_epoch`` and
    ``finish`` instead. On the same machine and the same versions, a run gives the same plan for the same seed, also after a resume.

    Args:
        student: the network that is trained, in place.
        supervision: labelled rows, the teacher's logits and its recourse.
        objective: terms of the loss.
        schedule: epochs, rates and the share of rows held out.
        bits: widths of the start, one per layer, or a tuple with one for each of its output channels.
        decision: head of the network's raw output and decision threshold.
        search: settings of learning the widths. None keeps ``bits``.
        seed: of the split, the batches and all sampling.
        workers: the processes that train together. None detects them.
    """

    def __init__(
        self,
        student: Student,
        supervision: Supervision,
        objective: Objective,
        schedule: Schedule,
        bits: Sequence[Bits],
        decision: DecisionRule,
        *,
        search: PolicySearch | None = None,
        seed: int = 0,
        workers: Workers | None = None,
    ) -> None:
        self.student, self.objective, self.search = student, objective, search
        self.bits: tuple[Bits, ...] = tuple(bits)
        self.seed = int(seed)
        self.workers = workers or Workers.detect()
        self.decision = decision
        training, held_out = schedule.split(len(supervision.rows), self.seed)
        self.training_rows = supervision.select(training)
        self.schedule = schedule.extend_to_least_steps(len(self.training_rows.rows))
        self._all_rows = supervision
        self._teacher_actions = len(self.training_rows.person)
        self._recourse_people = (
            count_affordable_people(student.network, self.training_rows, schedule.student_recourse) if objective.eta > 0 else 0
        )
        self.held_out = supervision.select(held_out).to_batch(self._generator(-2))
        self.softness = objective.softness * supervision.median_margin
        self.overshot = False
        self.optimizer = torch.optim.AdamW(self._build_parameter_groups(), weight_decay=0.0)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        #: Validation metrics of the start.
        self.start = self.validate()
        #: Number of the best epoch so far (-1 is the start), and its validation metrics.
        self.best = (-1, self.start)
        #: Parameter values of the start and of the best epoch.
        self.start_values = self.best_values = self._copy_values()
        #: One record per epoch.
        self.records: list[dict[str, Any]] = []

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps per epoch."""
        return -(-len(self.training_rows.rows) // self.schedule.batch_size)

    def logits(self, rows: Tensor) -> Tensor:
        """Compute the student's class logits of rows, (N, C)."""
        return self.decision.class_logits(self.student(rows))

    def is_searching(self, epoch: int) -> bool:
        """Return whether the policy is learned in this epoch."""
        return self.search is not None and epoch < self.schedule.search_epochs

    def draw_batches(self, epoch: int) -> Iterable[Batch]:
        """Yield this process's share of an epoch's batches, which depend on the seed and the epoch alone."""
        for batch in self.training_rows.draw_batches(self.schedule.batch_size, self._generator(epoch)):
            yield batch.shard(self.workers.rank, self.workers.size)

    def compute_step_loss(self, batch: Batch, epoch: int, step: int) -> dict[str, Tensor]:
        """Compute the loss terms of one batch, after setting the step's learning rates, temperature and widths.

        Args:
            batch: this process's share of the batch.
            epoch: number of the epoch, from 0.
            step: number of the step within the epoch, from 0.

        Returns:
            The weighted terms by name. The optimizer minimizes their sum.
        """
        self._set_rates(epoch, step)
        if self.is_searching(epoch) and self.search is not None:
            total = self.schedule.search_epochs * self.steps_per_epoch
            temperature = self.schedule.compute_temperature((epoch * self.steps_per_epoch + step) / total)
            choice = self.search.policy.sample(temperature, self._generator(epoch, step))
            self.student.set_bits(choice)
            bits = compute_mean_bits(choice, self.search.policy.widths)
            terms = compute_loss_terms(self.objective, self.logits, batch, self.training_rows.space, self.softness)
            return {**terms, "resource": self.search.weight * self.search.cost(bits)}
        self.student.set_bits(self.bits)
        return compute_loss_terms(self.objective, self.logits, batch, self.training_rows.space, self.softness)

    def validate(self) -> ValidationMetrics:
        """Compute the student's validation metrics under the current widths."""
        self.student.set_bits(self.bits)
        return validate_student(self.objective, self.logits, self.held_out, self._all_rows, self.softness)

    def is_eligible(self, metrics: ValidationMetrics) -> bool:
        """Return whether a student with these metrics may be kept.

        A student that accepts everybody keeps all recourse, so its drift is limited.
        """
        limit = self.schedule.max_drift
        return limit is None or abs(metrics.drift) <= max(limit, abs(self.start.drift))

    def end_search(self) -> None:
        """Fix the widths that the policy prefers within the budget, and validate the start again under them."""
        if self.search is None:
            return
        scores = score_by_policy(self.search.policy, self.search.network, self.search.granularity)
        allocation, self.overshot = discretize_policy(scores, self.search.budget, self.search.pinned)
        if allocation.bits != self.bits:
            self.bits, current = allocation.bits, self._copy_values()
            self._restore_values(self.start_values)
            self.start = self.validate()
            self.best = (-1, self.start)
            self._restore_values(current)

    def begin_epoch(self, epoch: int) -> None:
        """Prepare a settling epoch by freezing integers, adding the student's recourse, and sweeping. Other epochs need nothing."""
        if epoch < self.schedule.first_settling_epoch or not self.student.is_quantized:
            return
        self.student.set_bits(self.bits)
        if epoch == self.schedule.first_settling_epoch:
            self.student.freeze_integers()
        if self._recourse_people and epoch in self.schedule.student_recourse_epochs:
            example = self.training_rows.rows[:2]
            student = as_predictor(
                self.student, example=example, head=self.decision.head, threshold=self.decision.threshold, name="student"
            )
            generator = self._generator(epoch, -1 - self.schedule.sweeps)
            found = find_student_recourse(student, self.training_rows, self._recourse_people, generator)
            self.training_rows = self.training_rows.with_actions(*found)
        for number in range(self.schedule.sweeps):
            # Every row, and as many of the actions as an epoch uses.
            batch = next(self.training_rows.draw_batches(len(self.training_rows.rows), self._generator(epoch, -1 - number)))
            self.student.sweep(build_margin_target(self.objective, batch, self.softness), self.decision)

    def end_epoch(self, epoch: int, terms: Mapping[str, float]) -> None:
        """Record an epoch and its validation metrics, and fix the widths where the search ends.

        Args:
            epoch: number of the epoch, from 0.
            terms: mean loss terms over the epoch, by name.

        Raises:
            ModelError: a term is not finite.
        """
        if not all(math.isfinite(value) for value in terms.values()):
            raise ModelError(
                f"Training diverged in epoch {epoch}, where its loss terms are {dict(terms)}. "
                f"Lower learning_rate from {self.schedule.learning_rate}."
            )
        if self.is_searching(epoch) and not self.is_searching(epoch + 1):
            self.end_search()
        metrics = None if self.is_searching(epoch + 1) else self.validate()
        is_eligible = None if metrics is None else self.is_eligible(metrics)
        if metrics is not None and is_eligible and metrics.loss < self.best[1].loss:
            self.best, self.best_values = (epoch, metrics), self._copy_values()
        self.records.append({"epoch": epoch, **terms, **_to_record(metrics), "eligible": is_eligible, "bits": list(self.bits)})

    def finish(self) -> History:
        """Restore the best epoch's values to the student, and return the history."""
        self._restore_values(self.best_values)
        self.student.set_bits(self.bits)
        for parameter in self.parameters():
            parameter.grad = None
        shares = () if self.search is None else torch.softmax(self.search.policy.logits.detach(), dim=1).tolist()
        policy = tuple(tuple(row) for row in shares)
        return History(tuple(self.records), self.best[0], self.bits, _to_record(self.start), self.overshot, policy, self.schedule.max_drift)

    def fit(self, files: RunFiles | None = None, progress: bool = True) -> History:
        """Train the student, leave it with the values of its best epoch, and return the history.

        Args:
            files: checkpoint and log. None writes neither.
            progress: show a progress bar.

        Raises:
            ModelError: the loss is not finite.
            FileError: the checkpoint cannot be read or written, or belongs to another run.
        """
        files = files or RunFiles()
        run = self._compute_digest() if files.checkpoint is not None else ""
        epochs = range(self._resume(files.load_checkpoint(run)), self.schedule.epochs)
        for epoch in track(epochs, "training", enabled=progress and self.workers.rank == 0):
            sums: dict[str, float] = {}
            self.begin_epoch(epoch)
            for step, batch in enumerate(self.draw_batches(epoch)):
                self.optimizer.zero_grad(set_to_none=True)
                terms = self.compute_step_loss(batch, epoch, step)
                torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
                self.workers.average_gradients(self.parameters())
                self.optimizer.step()
                for name, term in terms.items():
                    sums[name] = sums.get(name, 0.0) + float(term.detach()) / self.steps_per_epoch
            self.end_epoch(epoch, sums)
            if self.workers.rank == 0:
                files.write_log(self.records)
                if files.checkpoint is not None:
                    files.save_checkpoint(self._build_checkpoint(epoch + 1), run)
        return self.finish()

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return all trained parameters."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _build_parameter_groups(self) -> list[dict[str, Any]]:
        """Build the optimizer's parameter groups, with learning rates relative to the size of each layer's weights."""
        rule = self.schedule
        groups: list[dict[str, Any]] = []
        for layer in self.student.layers:
            size = float(layer.weight.detach().square().mean().sqrt()) or 1.0
            groups.append({"params": [layer.weight], "lr": rule.learning_rate * size, "weight_decay": rule.weight_decay})
            groups.append({"params": [layer.bias], "lr": rule.learning_rate * size})
            if self.student.is_quantized:
                groups.append({"params": [layer.steps], "lr": rule.quantizer_rate * float(layer.steps.detach().abs().mean())})
        for clip in self.student.clips if self.student.is_quantized else ():
            if clip.clips is not None:
                groups.append({"params": [clip.clips], "lr": rule.quantizer_rate * float(clip.clips.detach().abs().mean())})
        if self.search is not None:
            groups.append({"params": [self.search.policy.logits], "lr": rule.policy_rate})
        return groups

    def _set_rates(self, epoch: int, step: int) -> None:
        factor = self.schedule.compute_rate_factor(epoch + step / self.steps_per_epoch)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

    def _generator(self, epoch: int, step: int = 0) -> torch.Generator:
        """Create the random generator of one step."""
        return create_generator(self.seed, epoch, step)

    def _copy_values(self) -> dict[str, Tensor]:
        """Copy all parameters and frozen integers, by name."""
        values = {str(number): parameter.detach().clone() for number, parameter in enumerate(self.parameters())}
        return {**values, **{f"held.{name}": integers.clone() for name, integers in self.student.get_frozen_integers().items()}}

    def _restore_values(self, values: dict[str, Tensor]) -> None:
        """Restore what ``_copy_values`` returned."""
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(values[str(number)])
        frozen = {key.removeprefix("held."): value for key, value in values.items() if key.startswith("held.")}
        self.student.restore_frozen_integers(frozen)

    def _compute_digest(self) -> str:
        """Compute the digest of everything that the run depends on."""
        settings = [asdict(self.objective), self.schedule.to_dict(), self.seed, self.bits, self.search is not None, self.student.keep]
        digest = hashlib.sha256(json.dumps(settings).encode())
        data = self.training_rows
        for values in (*self._copy_values().values(), data.rows, data.labels, data.actions, self.held_out.rows):
            digest.update(values.numpy().tobytes())
        return digest.hexdigest()

    def _resume(self, checkpoint: Checkpoint | None) -> int:
        """Restore the state of a checkpoint, and return the number of the next epoch, 0 without a checkpoint."""
        if checkpoint is None:
            return 0
        parts: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}, "moments": {}, "own": {}}
        for key, value in checkpoint.tensors.items():
            group, name = key.split("/", 1)
            parts[group][name] = value
        self._restore_values(parts["now"])
        restore_optimizer(self.optimizer, parts["moments"])
        state = checkpoint.progress
        self.bits, self.overshot, self.records = tuple(map(read_bits, state["bits"])), bool(state["overshot"]), list(state["log"])
        self.start, self.best = ValidationMetrics(**state["start"]), (int(state["best_epoch"]), ValidationMetrics(**state["best"]))
        self.best_values = parts["best"]
        self.training_rows = self.training_rows.with_actions(parts["own"]["person"], parts["own"]["actions"])
        return int(state["next"])

    def _build_checkpoint(self, next_epoch: int) -> Checkpoint:
        """Build the checkpoint that a run resumes from at ``next_epoch``."""
        first, data = self._teacher_actions, self.training_rows
        groups = {
            "now": self._copy_values(),
            "best": self.best_values,
            "moments": get_optimizer_tensors(self.optimizer),
            "own": {"person": data.person[first:], "actions": data.actions[first:]},
        }
        state = {
            "next": next_epoch,
            "best_epoch": self.best[0],
            "best": asdict(self.best[1]),
            "start": asdict(self.start),
            "bits": list(self.bits),
            "overshot": self.overshot,
            "log": self.records,
        }
        return Checkpoint({f"{group}/{name}": value for group, content in groups.items() for name, value in content.items()}, state)


def _to_record(metrics: ValidationMetrics | None) -> dict[str, Any]:
    """Return the metrics under the names of a record, all None where there are none."""
    names = {"validation": "loss", "drift": "drift", "flips": "flips", "validity_drop": "validity_drop"}
    return {name: None if metrics is None else getattr(metrics, field) for name, field in names.items()}
