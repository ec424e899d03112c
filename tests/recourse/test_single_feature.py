"""Single-feature actions against moving every feature by hand."""

from __future__ import annotations

import torch
from torch import nn

from cfptq.actions import ActionSet, Categorical, Continuous
from cfptq.network import as_predictor
from cfptq.recourse import find_single_feature_actions
from cfptq.recourse.single_feature_moves import LENGTH_SHARES


def test_every_feature_that_suffices_is_found_with_the_shortest_length_tried() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.cat((torch.randn(40, 3, generator=generator), torch.eye(3)[torch.randint(3, (40,), generator=generator)]), 1)
    features = [
        Continuous("a", column=0, bounds=(-3.0, 3.0)),
        Continuous("b", column=1, bounds=(-1.0, 2.0)),
        Continuous("c", column=2, mutability="immutable"),
        Categorical("d", columns=(3, 4, 5), levels=("p", "q", "r")),
    ]
    x[:, 0].clamp_(-3, 3)
    x[:, 1].clamp_(-1, 2)
    space = ActionSet.from_columns(x, features, favourable=1)
    model = nn.Linear(6, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0] * 6, [1.0, -0.7, 2.0, 0.0, 1.5, 3.0]]))
        model.bias.copy_(torch.tensor([0.0, -3.0]))

    def margin(rows: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits = model(rows)
        return logits[:, 1] - logits[:, 0]

    refused = x[margin(x) < 0]
    batch, row = find_single_feature_actions(as_predictor(model, example=x), refused, space, torch.ones(len(refused), dtype=torch.int64))
    found = {(int(r), tuple((d != 0).nonzero()[:, 0].tolist())): d for r, d in zip(row, batch.delta, strict=True)}
    assert bool(batch.found.all()) and bool((margin(batch.points) > 0).all()) and bool((row.diff() >= 0).all())
    assert torch.equal(batch.factual, refused[row]) and torch.allclose(batch.points, refused[row] + batch.delta)
    expected = 0
    for number, person in enumerate(refused):
        for column, bound in ((0, 3.0), (1, -1.0)):  # the other directions only lower the margin
            lengths = [share * (bound - float(person[column])) for share in LENGTH_SHARES]
            enough = [length for length in lengths if margin((person + length * torch.eye(6)[column])[None]) > 0]
            assert ((number, (column,)) in found) == bool(enough)
            if enough:
                expected += 1
                assert abs(float(found[number, (column,)][column]) - min(enough, key=abs)) < 1e-5
        current = int(person[3:].argmax())
        for level in {0, 1, 2} - {current}:
            there = person.clone()
            there[3:] = torch.eye(3)[level]
            holds = bool(margin(there[None]) > 0)
            assert ((number, tuple(sorted((3 + current, 3 + level)))) in found) == holds
            expected += holds
    assert len(found) == len(row) == expected > 20


def test_rows_without_mutable_features_have_no_action() -> None:
    x = torch.zeros(5, 1)
    space = ActionSet.from_columns(x, [Continuous("a", column=0, bounds=(-1.0, 1.0), mutability="immutable")], favourable=1)
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([1.0, 0.0]))
    batch, row = find_single_feature_actions(as_predictor(model, example=x), x, space, torch.ones(5, dtype=torch.int64))
    assert len(batch) == 0 and len(row) == 0
