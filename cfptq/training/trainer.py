"""The training loop: a plain one, the same every time, that survives being killed."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from cfptq.allocation import Budget
from cfptq.errors import ModelError
from cfptq.io.atomic import write_text
from cfptq.io.progress import track
from cfptq.network import Head, Network, as_predictor, class_logits
from cfptq.training.bit_policy import BitCost, BitPolicy, discretized, mean_bits, policy_scores
from cfptq.training.checkpoint import Checkpoint, optimizer_tensors, restore_optimizer
from cfptq.training.distributed import Workers
from cfptq.training.objective import Objective, aim, loss
from cfptq.training.schedule import Schedule, randomness
from cfptq.training.student import Student
from cfptq.training.student_recourse import affordable_people, own_recourse
from cfptq.training.supervision import Batch, Supervision
from cfptq.training.validation import ValidationMetrics, judge


@dataclass(frozen=True)
class Search:
    """Learning the widths.

    Attributes:
        policy: π, trained along with the student.
        cost: the resource term. weight: λ.
        budget: what the discretized widths must meet.
        network: for layer names. pinned: layer -> width it keeps.
    """

    policy: BitPolicy
    cost: BitCost
    weight: float
    budget: Budget
    network: Network
    pinned: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Files:
    """Where a run keeps itself; None keeps nothing.

    Attributes:
        checkpoint: one file, replaced after every epoch; a run that finds it goes on from there.
        log: CSV, one line an epoch.
    """

    checkpoint: str | os.PathLike[str] | None = None
    log: str | os.PathLike[str] | None = None


@dataclass(frozen=True)
class History:
    """What happened.

    Attributes:
        epochs: one entry an epoch: the loss's terms on training rows, the judgement on rows set aside (None while widths are searched),
            whether the epoch was eligible by :attr:`Schedule.max_drift`, the widths.
        best_epoch: the epoch kept; -1 is the start.
        start: the judgement of the start, under the final widths.
        bits: final widths. overshot: the policy's own choice was over the budget and was brought back by the knapsack.
        policy: (L, widths) the learned π; empty where widths were not learned.
    """

    epochs: tuple[dict[str, Any], ...]
    best_epoch: int
    bits: tuple[int, ...]
    start: dict[str, Any]
    overshot: bool = False
    policy: tuple[tuple[float, ...], ...] = ()

    @property
    def note(self) -> str:
        """What a user should know of the epoch kept; empty where there is nothing to say."""
        validated = [entry for entry in self.epochs if entry["validation"] is not None]
        if not validated or any(entry["eligible"] for entry in validated):
            return ""
        least = min(abs(entry["drift"]) for entry in validated)
        return f"every epoch moved the favourable rate by {100 * least:.1f} points or more: farther than max_drift, and than the start"

    def __str__(self) -> str:
        kept = self.start if self.best_epoch < 0 else self.epochs[self.best_epoch]
        which = "the start was kept" if self.best_epoch < 0 else f"epoch {self.best_epoch + 1} of {len(self.epochs)} was kept"
        drop = kept["validity_drop"]
        recourse = (
            "" if drop is None else f", Validity Drop on rows set aside is {drop:.3f} (the start's {self.start['validity_drop']:.3f})"
        )
        told = f"{which}: the favourable rate moves by {100 * kept['drift']:+.1f} points{recourse}"
        return f"{told}; {self.note}" if self.note else told

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a file."""
        return asdict(self)

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> History:
        """What :meth:`to_dict` gave."""
        return History(
            tuple(dict(entry) for entry in content["epochs"]),
            int(content["best_epoch"]),
            tuple(int(bits) for bits in content["bits"]),
            dict(content["start"]),
            bool(content["overshot"]),
            tuple(tuple(float(share) for share in row) for row in content["policy"]),
        )


class Trainer:
    """One run. ``fit`` is the loop; ``step_loss`` serves trainers of other frameworks as well."""

    def __init__(
        self,
        student: Student,
        supervision: Supervision,
        objective: Objective,
        schedule: Schedule,
        bits: Sequence[int],
        head: Head,
        threshold: float | None,
        *,
        search: Search | None = None,
        seed: int = 0,
        workers: Workers | None = None,
    ) -> None:
        self.student, self.objective, self.search = student, objective, search
        self.bits = tuple(bits)
        self.seed = int(seed)
        self.workers = workers or Workers.present()
        self.head, self.threshold = head, threshold
        fitted, aside = schedule.split(len(supervision.rows), self.seed)
        self.fitted = supervision.select(fitted)
        self.schedule = schedule.lasting(len(self.fitted.rows))
        self._everyone = supervision
        self._teachers = len(self.fitted.person)
        self._asked = affordable_people(student.network, self.fitted, schedule.own_recourse) if objective.eta > 0 else 0
        self.held_out = supervision.select(aside).whole(self._generator(-2))
        self.softness = objective.softness * supervision.median_margin
        self.overshot = False
        self.optimizer = torch.optim.AdamW(self._groups(), weight_decay=0.0)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        #: The start's judgement; the best epoch so far and its own (-1 is the start), its values, and one entry an epoch.
        self.start = self.judgement()
        self.best = (-1, self.start)
        self.start_values = self.best_values = self._values()
        self.log: list[dict[str, Any]] = []

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-len(self.fitted.rows) // self.schedule.batch_size)

    def logits(self, rows: Tensor) -> Tensor:
        """The student's class logits."""
        return class_logits(self.student(rows), self.head, self.threshold)

    def searching(self, epoch: int) -> bool:
        """Whether the policy is learned in this epoch."""
        return self.search is not None and epoch < self.schedule.search_epochs

    def batches(self, epoch: int) -> Iterable[Batch]:
        """This process's share of an epoch's batches; the same for a run that was interrupted."""
        for batch in self.fitted.batches(self.schedule.batch_size, self._generator(epoch)):
            yield batch.shard(self.workers.rank, self.workers.size)

    def step_loss(self, batch: Batch, epoch: int, step: int) -> dict[str, Tensor]:
        """The loss's terms on one batch, rates and temperature set for this step; under the widths that the step samples."""
        self._set_rates(epoch, step)
        if self.searching(epoch) and self.search is not None:
            total = self.schedule.search_epochs * self.steps_per_epoch
            temperature = self.schedule.temperature_at((epoch * self.steps_per_epoch + step) / total)
            choice = self.search.policy.sample(temperature, self._generator(epoch, step))
            self.student.choose(choice)
            bits = mean_bits(choice, self.search.policy.widths)
            terms = loss(self.objective, self.logits, batch, self.fitted.space, self.softness)
            return {**terms, "resource": self.search.weight * self.search.cost(bits)}
        self.student.choose(self.bits)
        return loss(self.objective, self.logits, batch, self.fitted.space, self.softness)

    def judgement(self) -> ValidationMetrics:
        """The student on the rows set aside (its drift on all), under the widths last fixed."""
        self.student.choose(self.bits)
        return judge(self.objective, self.logits, self.held_out, self._everyone, self.softness)

    def eligible(self, judgement: ValidationMetrics) -> bool:
        """Whether a student may be kept: recourse that survives because everybody is accepted has not survived."""
        limit = self.schedule.max_drift
        return limit is None or abs(judgement.drift) <= max(limit, abs(self.start.drift))

    def end_search(self) -> None:
        """Fix the widths: arg max of the policy, brought back to the budget by the knapsack. The start is judged anew under them."""
        if self.search is None:
            return
        scores = policy_scores(self.search.policy, self.search.network)
        allocation, self.overshot = discretized(scores, self.search.budget, self.search.pinned)
        if allocation.bits != self.bits:
            self.bits, reached = allocation.bits, self._values()
            self._put(self.start_values)
            self.start = self.judgement()
            self.best = (-1, self.start)
            self._put(reached)

    def begin_epoch(self, epoch: int) -> None:
        """Hold the integers where settling starts; from then on look for the student's own recourse, and sweep over the integers."""
        if epoch < self.schedule.settle_from or not self.student.quantized:
            return
        self.student.choose(self.bits)
        if epoch == self.schedule.settle_from:
            self.student.hold()
        if self._asked and epoch in self.schedule.asking_epochs:
            student = as_predictor(self.student, example=self.fitted.rows[:2], head=self.head, threshold=self.threshold, name="student")
            found = own_recourse(student, self.fitted, self._asked, self._generator(epoch, -1 - self.schedule.sweeps))
            self.fitted = self.fitted.with_actions(*found)
        for number in range(self.schedule.sweeps):
            # Every row, and as many of the actions as an epoch uses.
            everybody = next(self.fitted.batches(len(self.fitted.rows), self._generator(epoch, -1 - number)))
            self.student.sweep(aim(self.objective, everybody, self.softness), self.head, self.threshold)

    def end_epoch(self, epoch: int, terms: Mapping[str, float]) -> None:
        """Fix the widths where the search ends, validate, remember the best and what happened; ``terms`` are means over the epoch.

        Raises:
            ModelError: a term is not finite.
        """
        if not all(math.isfinite(value) for value in terms.values()):
            raise ModelError(
                f"training diverged in epoch {epoch}: its loss is {dict(terms)}; lower learning_rate from {self.schedule.learning_rate}"
            )
        if self.searching(epoch) and not self.searching(epoch + 1):
            self.end_search()
        found = None if self.searching(epoch + 1) else self.judgement()
        eligible = None if found is None else self.eligible(found)
        if found is not None and eligible and found.loss < self.best[1].loss:
            self.best, self.best_values = (epoch, found), self._values()
        self.log.append({"epoch": epoch, **terms, **_entry(found), "eligible": eligible, "bits": list(self.bits)})

    def finish(self) -> History:
        """Leave the student with the values of its best epoch."""
        self._put(self.best_values)
        self.student.choose(self.bits)
        for parameter in self.parameters():
            parameter.grad = None
        shares = () if self.search is None else torch.softmax(self.search.policy.logits.detach(), dim=1).tolist()
        return History(tuple(self.log), self.best[0], self.bits, _entry(self.start), self.overshot, tuple(tuple(row) for row in shares))

    def fit(self, files: Files | None = None, progress: bool = True) -> History:
        """Train, and leave the student with the values of its best epoch.

        Raises:
            ModelError: the loss is not finite.
            FileError: the checkpoint cannot be read or written, or is another run's.
        """
        files = files or Files()
        epochs = range(self._resumed(files), self.schedule.epochs)
        for epoch in track(epochs, "training", enabled=progress and self.workers.rank == 0):
            sums: dict[str, float] = {}
            self.begin_epoch(epoch)
            for step, batch in enumerate(self.batches(epoch)):
                self.optimizer.zero_grad(set_to_none=True)
                terms = self.step_loss(batch, epoch, step)
                torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
                self.workers.average(self.parameters())
                self.optimizer.step()
                for name, term in terms.items():
                    sums[name] = sums.get(name, 0.0) + float(term.detach()) / self.steps_per_epoch
            self.end_epoch(epoch, sums)
            if self.workers.rank == 0:
                self._keep(files, epoch + 1)
        return self.finish()

    def parameters(self) -> list[torch.nn.Parameter]:
        """Everything that is trained."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _groups(self) -> list[dict[str, Any]]:
        """Parameter groups; rates are shares of each layer's own scale."""
        rule = self.schedule
        groups: list[dict[str, Any]] = []
        for layer in self.student.layers:
            size = float(layer.weight.detach().square().mean().sqrt()) or 1.0
            groups.append({"params": [layer.weight], "lr": rule.learning_rate * size, "weight_decay": rule.weight_decay})
            groups.append({"params": [layer.bias], "lr": rule.learning_rate * size})
            if self.student.quantized:
                groups.append({"params": [layer.steps], "lr": rule.quantizer_rate * float(layer.steps.detach().abs().mean())})
        for clip in self.student.clips if self.student.quantized else ():
            if clip.clips is not None:
                groups.append({"params": [clip.clips], "lr": rule.quantizer_rate * float(clip.clips.detach().abs().mean())})
        if self.search is not None:
            groups.append({"params": [self.search.policy.logits], "lr": rule.policy_rate})
        return groups

    def _set_rates(self, epoch: int, step: int) -> None:
        factor = self.schedule.rate(epoch + step / self.steps_per_epoch)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

    def _generator(self, epoch: int, step: int = 0) -> torch.Generator:
        """Randomness of one step: depends on the seed and the place alone, so that a resumed run draws the same."""
        return randomness(self.seed, epoch, step)

    def _values(self) -> dict[str, Tensor]:
        values = {str(number): parameter.detach().clone() for number, parameter in enumerate(self.parameters())}
        return {**values, **{f"held.{name}": integers.clone() for name, integers in self.student.held_integers().items()}}

    def _put(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(values[str(number)])
        self.student.restore_held({key.removeprefix("held."): value for key, value in values.items() if key.startswith("held.")})

    def _run(self) -> str:
        """Digest of all that the run depends on."""
        parts = hashlib.sha256(
            json.dumps([asdict(self.objective), self.schedule.to_dict(), self.seed, self.bits, self.search is not None]).encode()
        )
        for values in (*self._values().values(), self.fitted.rows, self.fitted.labels, self.fitted.actions, self.held_out.rows):
            parts.update(values.numpy().tobytes())
        return parts.hexdigest()

    def _resumed(self, files: Files) -> int:
        """The epoch to go on with: the first, or the one after the checkpoint's, whose values are put in place."""
        self._name = self._run() if files.checkpoint is not None else ""
        found = Checkpoint.load(files.checkpoint, self._name) if files.checkpoint is not None else None
        if found is None:
            return 0
        parts: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}, "moments": {}, "own": {}}
        for key, value in found.tensors.items():
            group, name = key.split("/", 1)
            parts[group][name] = value
        self._put(parts["now"])
        restore_optimizer(self.optimizer, parts["moments"])
        state = found.progress
        self.bits, self.overshot, self.log = tuple(state["bits"]), bool(state["overshot"]), list(state["log"])
        self.start, self.best = ValidationMetrics(**state["start"]), (int(state["best_epoch"]), ValidationMetrics(**state["best"]))
        self.best_values = parts["best"]
        self.fitted = self.fitted.with_actions(parts["own"]["person"], parts["own"]["actions"])
        return int(state["next"])

    def _keep(self, files: Files, following: int) -> None:
        if files.log is not None:
            names = list(dict.fromkeys(name for entry in self.log for name in entry))
            lines = [",".join(names), *(",".join(_cell(entry.get(name)) for name in names) for entry in self.log)]
            write_text(files.log, "\n".join(lines) + "\n")
        if files.checkpoint is None:
            return
        own = {"person": self.fitted.person[self._teachers :], "actions": self.fitted.actions[self._teachers :]}
        groups = {"now": self._values(), "best": self.best_values, "moments": optimizer_tensors(self.optimizer), "own": own}
        tensors = {f"{group}/{name}": value for group, content in groups.items() for name, value in content.items()}
        state = {
            "next": following,
            "best_epoch": self.best[0],
            "best": asdict(self.best[1]),
            "start": asdict(self.start),
            "bits": list(self.bits),
            "overshot": self.overshot,
            "log": self.log,
        }
        Checkpoint(tensors, state).save(files.checkpoint, self._name)


def _entry(judgement: ValidationMetrics | None) -> dict[str, Any]:
    """A judgement in the log's words."""
    names = {"validation": "loss", "drift": "drift", "flips": "flips", "validity_drop": "validity_drop"}
    return {name: None if judgement is None else getattr(judgement, field) for name, field in names.items()}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return " ".join(map(str, value)) if isinstance(value, list) else f"{value}"
