"""What capture sees of a model, and that it leaves the model alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cfptq
from cfptq.actions import ActionSet, Continuous
from cfptq.errors import DataError, ModelError
from cfptq.network import Network, capture
from cfptq.network.serialize import digest


class Computing(nn.Module):
    """A model whose forward is a function of its modules, for one-line architectures."""

    def __init__(self, function, **parts) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def mlp(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2))


@pytest.fixture(scope="module")
def network() -> Network:
    """The captured :func:`mlp`; networks never change, so that all tests can share it."""
    return capture(mlp(), rows(3, 4))


def rows(count: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def test_the_network_computes_what_the_model_does_in_evaluation_mode_for_any_number_of_rows(captured):
    model, network = captured
    for count in (1, 2, 9):
        x = rows(count, *network.input_shape, seed=count)
        with torch.no_grad():
            torch.testing.assert_close(network(x), model(x), atol=1e-5, rtol=1e-5)


def test_layers_are_named_as_in_the_model_in_execution_order(network):
    assert [layer.name for layer in network.layers] == ["0", "2", "4"]
    first, second, _ = network.layers
    assert (first.kind, first.weight_shape, first.parameters) == ("linear", (5, 4), 20)
    assert (first.weight, first.bias) == ("0.weight", "0.bias")
    assert first.input == network.input_name
    assert second.input != second.node
    assert network.input_shape == (4,)
    assert network.skipped == ()


def test_layers_fed_by_one_tensor_say_so():
    model = Computing(lambda m, x: m.a(x) + m.b(x), a=nn.Linear(4, 2), b=nn.Linear(4, 2))
    a, b = capture(model, rows(3, 4)).layers
    assert a.input == b.input


def test_node_names_and_digest_depend_on_the_model_alone():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Unflatten(1, (2, 3)), nn.Flatten(), nn.Linear(6, 2))
    first = capture(model, rows(3, 4))
    second = capture(copy.deepcopy(model), rows(7, 4, seed=2))
    assert digest(first) == digest(second)
    assert first.layers == second.layers
    with torch.no_grad():
        model[0].bias[0] += 1e-6
    assert digest(capture(model, rows(3, 4))) != digest(first)


def test_the_model_is_left_exactly_as_it_was():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 2))
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model(rows(8, 4)).sum().backward()
    before = copy.deepcopy(model.state_dict())
    gradient = model[3].weight.grad
    torch.manual_seed(5)
    np.random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()

    network = capture(model, rows(3, 4))
    network(rows(3, 4))

    assert [module.training for module in model] == [True, False, True, True]
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True, True, True]
    assert model[3].weight.grad is gradient
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])


def test_the_network_keeps_its_own_parameters():
    model = mlp()
    network = capture(model, rows(3, 4))
    answer = network(rows(5, 4))
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(network(rows(5, 4)), answer)


def test_gradients_flow_to_the_input_and_not_to_parameters(network):
    model = mlp()
    ours, theirs = rows(5, 4).requires_grad_(), rows(5, 4).requires_grad_()
    network(ours).sum().backward()
    model.eval()(theirs).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert not any(parameter.requires_grad for parameter in network.graph.parameters())


def test_observe_gives_what_feeds_each_layer(network):
    model = mlp().eval()
    x = rows(6, 4)
    seen = network.observe(x, [layer.input for layer in network.layers])
    assert list(seen) == [layer.input for layer in network.layers]
    with torch.no_grad():
        torch.testing.assert_close(seen[network.layers[0].input], x)
        torch.testing.assert_close(seen[network.layers[1].input], model[:2](x))
        torch.testing.assert_close(seen[network.layers[2].input], model[:4](x))
        torch.testing.assert_close(network.observe(x, [network.output_name])[network.output_name], model(x))
    assert not any(value.requires_grad for value in network.observe(x.requires_grad_(), list(seen)).values())


def test_what_a_layer_saw_is_not_overwritten_by_an_operation_in_place():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)).eval()
    network = capture(model, rows(3, 4))
    x = rows(6, 4)
    first = network.layers[0]
    with torch.no_grad():
        torch.testing.assert_close(network.observe(x, [first.node])[first.node], model[0](x))


def test_observe_names_a_node_that_does_not_exist(network):
    with pytest.raises(ModelError, match="no node called nothing"):
        network.observe(rows(3, 4), ["nothing"])


def test_other_parameters_make_another_network(network):
    model = mlp().eval()
    x = rows(5, 4)
    before = network(x)
    weight, bias = torch.ones(2, 5), torch.tensor([1.0, -1.0])
    changed = network.with_parameters({"4": (weight, bias)})
    with torch.no_grad():
        torch.testing.assert_close(changed(x), model[:4](x) @ weight.T + bias)
    assert torch.equal(network(x), before)
    weight.zero_()
    assert torch.equal(changed.weight("4"), torch.ones(2, 5))


def test_a_bias_can_be_added_and_taken_away():
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 2)).eval()
    network = capture(model, rows(3, 4))
    assert network.bias("0") is None
    bias = torch.arange(5.0)
    added = network.with_parameters({"0": (network.weight("0"), bias), "2": (network.weight("2"), None)})
    assert added.layer("0").bias == "0.bias"
    assert added.bias("2") is None
    x = rows(5, 4)
    with torch.no_grad():
        torch.testing.assert_close(added(x), F.relu(x @ model[0].weight.T + bias) @ model[2].weight.T)
    back = added.with_parameters({"0": (network.weight("0"), None), "2": (network.weight("2"), network.bias("2"))})
    torch.testing.assert_close(back(x), network(x))


@pytest.mark.parametrize("weight", [torch.ones(5, 2), torch.ones(2, 5, dtype=torch.float64)])
def test_parameters_that_do_not_fit_are_refused(network, weight):
    with pytest.raises(ModelError, match=r"4\.weight must be float32 of shape \(2, 5\)"):
        network.with_parameters({"4": (weight, None)})


def test_an_unknown_layer_is_named_beside_those_there_are(network):
    with pytest.raises(ModelError, match=r"'1'.*The layers are 0, 2, 4"):
        network.weight("1")


def test_a_transformed_graph_leaves_the_network_as_it_was(network):
    x = rows(5, 4)
    before = network(x)

    def double_the_input(graph):
        source = next(node for node in graph.graph.nodes if node.name == network.layers[0].input)
        with graph.graph.inserting_after(source):
            doubled = graph.graph.call_function(torch.ops.aten.mul.Tensor, (source, 2.0))
        source.replace_all_uses_with(doubled, delete_user_cb=lambda user: user is not doubled)

    doubled = network.edit_copy(double_the_input)
    torch.testing.assert_close(doubled(x), network(2 * x))
    assert torch.equal(network(x), before)
    assert {layer.node for layer in network.layers} <= {node.name for node in doubled.graph.nodes}


def test_a_network_can_be_copied(network):
    network.observe(rows(3, 4), [network.layers[1].input])
    copied = copy.deepcopy(network)
    assert digest(copied) == digest(network)
    assert copied.weight("0") is not network.weight("0")
    torch.testing.assert_close(copied(rows(5, 4)), network(rows(5, 4)))


def test_a_weight_that_two_layers_share_stays_in_float():
    shared = nn.Linear(4, 4)
    model = Computing(lambda m, x: m.head(m.body(torch.relu(m.body(x)))), body=shared, head=nn.Linear(4, 2))
    network = capture(model, rows(3, 4))
    assert [layer.name for layer in network.layers] == ["head"]
    assert network.skipped == (("body", "its weight is used 2 times in the model"),)


def test_a_weight_tied_between_two_modules_stays_in_float():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    network = capture(model, rows(3, 4))
    assert [layer.name for layer in network.layers] == ["3"]
    assert len(network.skipped) == 1


def test_layers_that_share_a_bias_get_their_own():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].bias = model[0].bias
    network = capture(model, rows(3, 4))
    changed = network.with_parameters({"0": (network.weight("0"), torch.zeros(4))})
    assert torch.equal(changed.bias("2"), model[0].bias)
    assert [layer.bias for layer in changed.layers] == ["0.bias", "2.bias"]


def test_layers_in_a_branch_of_cond_are_named_and_left_in_float():
    def forward(m, x):
        return m.head(torch.cond(x.sum() > 0, lambda t: m.yes(t), lambda t: m.no(t), (x,)))

    network = capture(Computing(forward, yes=nn.Linear(4, 1), no=nn.Linear(4, 1), head=nn.Linear(1, 2)), rows(3, 4))
    assert [layer.name for layer in network.layers] == ["head"]
    assert dict(network.skipped) == {"yes": "inside a branch of torch.cond", "no": "inside a branch of torch.cond"}


@pytest.mark.parametrize(
    ("forward", "parts", "shape", "name", "operation"),
    [
        (
            lambda m, x: m.head(F.bilinear(x, x, m.matrix)),
            {"matrix": nn.Parameter(torch.ones(3, 4, 4)), "head": nn.Linear(3, 2)},
            (4,),
            "matrix",
            "bilinear",
        ),
        (lambda m, x: m.head(m.conv(x).flatten(1)), {"conv": nn.Conv3d(1, 2, 2), "head": nn.Linear(2, 2)}, (1, 2, 2, 2), "conv", "conv3d"),
        (
            lambda m, x: m.head(m.conv(x).flatten(1)),
            {"conv": nn.ConvTranspose1d(2, 3, 2), "head": nn.Linear(18, 2)},
            (2, 5),
            "conv",
            "conv_transpose1d",
        ),
        (
            lambda m, x: m.head(m.table(x[:, 0].abs().long().clamp(max=3))),
            {"table": nn.Embedding(4, 3), "head": nn.Linear(3, 2)},
            (4,),
            "table",
            "embedding",
        ),
        (
            lambda m, x: m.head(m.rnn(x)[0][:, -1]),
            {"rnn": nn.LSTM(3, 4, batch_first=True), "head": nn.Linear(4, 2)},
            (5, 3),
            "rnn.weight_ih_l0",
            "lstm",
        ),
    ],
)
def test_a_layer_of_another_kind_is_named_and_left_in_float(forward, parts, shape, name, operation):
    network = capture(Computing(forward, **parts), rows(3, *shape))
    assert [layer.name for layer in network.layers] == ["head"]
    assert dict(network.skipped)[name].startswith(f"{operation} is not one of the operations")


def test_scales_and_tokens_are_no_layers():
    model = Computing(
        lambda m, x: m.head(torch.cat([x * m.scale, m.token.expand(x.shape[0], 2)], 1)),
        scale=nn.Parameter(torch.ones(1, 4)),
        token=nn.Parameter(torch.ones(1, 2)),
        head=nn.Linear(6, 2),
    )
    assert capture(model, rows(3, 4)).skipped == ()


def test_attention_is_taken_with_its_projections():
    model = Computing(
        lambda m, x: m.head(m.encoder(x).mean(1)),
        encoder=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        head=nn.Linear(8, 2),
    )
    names = [layer.name for layer in capture(model, rows(3, 5, 8)).layers]
    assert names == ["encoder.self_attn.in_proj_weight", "encoder.self_attn.out_proj", "encoder.linear1", "encoder.linear2", "head"]


def test_a_parametrized_weight_becomes_a_plain_one():
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))
    network = capture(nn.Sequential(linear), rows(3, 4))
    assert [layer.name for layer in network.layers] == ["0"]
    torch.testing.assert_close(network.weight("0"), linear.weight.detach())


def test_a_bare_layer_is_a_model():
    network = capture(nn.Linear(4, 2), rows(3, 4))
    assert [layer.kind for layer in network.layers] == ["linear"]


def test_one_row_is_example_enough():
    assert capture(mlp(), rows(1, 4))(rows(5, 4)).shape == (5, 2)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.layer(x) + y


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1.0)
        return self.layer(x)


def linear() -> nn.Linear:
    return nn.Linear(4, 2)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.ReLU()), "no layer with a weight matrix"),
        (Computing(lambda m, x: m.c(x.view(-1, 1, 1, 2, 2)).flatten(1), c=nn.Conv3d(1, 2, (1, 2, 2))), "c: conv3d is not"),
        (TwoInputs(), "forward of TwoInputs needs"),
        (Computing(lambda m, x: {"logits": m.a(x)}, a=linear()), "got dict. Wrap it"),
        (Computing(lambda m, x: m.a(x).sum(), a=linear()), "one output per row"),
        (Computing(lambda m, x: m.a(x) * float("nan"), a=linear()), "NaN"),
        (linear().double(), r"float64.*model\.float\(\)"),
        (linear().to("meta"), "meta device"),
        (Computing(lambda m, x: m.a(x) if x.sum() > 0 else -m.a(x), a=linear()), r"torch\.cond"),
        (Computing(lambda m, x: m.a(x.view(3, 4)), a=linear()), "any number of rows"),
        (Computing(lambda m, x: F.dropout(m.a(x), 0.5, training=True), a=linear()), "draws random numbers"),
        (Computing(lambda m, x: m.a(x) + torch.randn(2), a=linear()), "draws random numbers"),
        (nn.Sequential(linear(), nn.BatchNorm1d(2, track_running_stats=False)), "must have running statistics"),
        (Counting(), "must not change its own buffer 'calls'"),
        (torch.jit.script(nn.Sequential(linear())), "must not be a ScriptModule"),
        (lambda x: x, "must be a torch.nn.Module"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_model_that_cannot_be_captured_is_refused_with_the_reason(model, words, capfd):
    state = copy.deepcopy(model.state_dict()) if isinstance(model, nn.Module) else {}
    with pytest.raises(ModelError, match=words):
        capture(model, rows(3, 4))
    if isinstance(model, nn.Module) and not any(value.is_meta for value in state.values()):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("model", [nn.Sequential(nn.LazyLinear(2)), nn.Sequential(nn.Linear(4, 2), nn.LazyBatchNorm1d())])
def test_a_lazy_model_without_values_is_refused_wherever_it_is_given(model):
    space = ActionSet.from_columns(rows(3, 4), [Continuous("a", column=0)], favourable=1)
    with pytest.raises(ModelError, match="Run the lazy model"):
        capture(model, rows(3, 4))
    with pytest.raises(ModelError, match="Run the lazy model"):
        cfptq.calibrate(model, [rows(3, 4)], space, progress=False)


@pytest.mark.parametrize(
    ("example", "words"),
    [
        ((rows(3, 4), rows(3, 4)), "one tensor.*tuple"),
        (rows(3, 4).double(), "float64"),
        (rows(0, 4), "at least one row"),
        (torch.tensor([[1.0, float("nan"), 0.0, 0.0]]), "NaN"),
        (torch.ones(4), "batch first"),
    ],
)
def test_an_example_that_is_no_batch_is_refused(example, words):
    with pytest.raises(DataError, match=words):
        capture(mlp(), example)


def test_a_model_with_values_that_are_not_numbers_is_refused():
    model = mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = float("inf")
    with pytest.raises(ModelError, match=r"'2\.weight' must be finite, but holds NaN or infinite"):
        capture(model, rows(3, 4))


@pytest.mark.parametrize("x", [rows(3, 5), rows(3, 4).double()])
def test_rows_that_do_not_fit_are_refused(network, x):
    for run in (network, lambda given: network.observe(given, [network.input_name])):
        with pytest.raises(DataError, match="Rows must"):
            run(x)


def test_a_parameter_that_stands_at_a_layers_place_is_moved_aside():
    weights = nn.ParameterDict({"weight": nn.Parameter(torch.ones(2, 4)), "bias": nn.Parameter(torch.tensor([3.0, 4.0]))})
    network = capture(Computing(lambda m, x: F.linear(x, m.pair["weight"]) * m.pair["bias"], pair=weights), rows(3, 4))
    changed = network.with_parameters({"pair": (torch.zeros(2, 4), torch.ones(2))})
    assert torch.equal(changed(rows(1, 4)), torch.tensor([[3.0, 4.0]]))


@pytest.mark.parametrize(
    ("forward", "written"),
    [
        (lambda m, x: m.c(x), [[1, 1], [1, 1], [1, 1], 1]),
        (lambda m, x: F.conv2d(x, m.c.weight, stride=2), [[2, 2], [0, 0], [1, 1], 1]),
        (lambda m, x: F.conv2d(x, m.c.weight, padding="valid", dilation=(1, 2)), [[1, 1], [0, 0], [1, 2], 1]),
        (lambda m, x: F.conv2d(x, m.c.weight, padding="same", dilation=(1, 2)), [[1, 1], [1, 2], [1, 2], 1]),
        (lambda m, x: torch.convolution(x, m.c.weight, None, [2, 1], [1, 0], [1, 1], False, [0, 0], 1), [[2, 1], [1, 0], [1, 1], 1]),
    ],
    ids=["module", "functional", "valid", "same", "general"],
)
def test_convolutions_are_written_in_one_way_however_the_model_writes_them(forward, written):
    model = Computing(lambda m, x: forward(m, x).mean((2, 3)), c=nn.Conv2d(2, 3, 3, padding=1))
    network = capture(model, rows(3, 2, 8, 8))
    (node,) = [node for node in network.graph.graph.nodes if node.name == network.layers[0].node]
    assert node.target is torch.ops.aten.conv2d.default and not node.kwargs
    assert [list(entry) if isinstance(entry, list | tuple) else entry for entry in node.args[3:]] == written
