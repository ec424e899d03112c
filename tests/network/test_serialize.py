"""A network on disk comes back as it was, or not at all."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from cfptq.errors import FileError, ModelError
from cfptq.network import Network, capture
from cfptq.network.serialize import GRAPH_FILE, TENSOR_FILE, deserialize_network, digest, serialize_network


@pytest.fixture(scope="module")
def network() -> Network:
    return capture(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), torch.ones(3, 4))


@pytest.fixture(scope="module")
def files(network) -> dict[str, bytes]:
    """The contents of a saved MLP's two files."""
    return serialize_network(network)


def test_what_is_read_back_is_the_same_network(captured):
    _, network = captured
    restored = deserialize_network(serialize_network(network))
    assert digest(restored) == digest(network)
    assert (restored.layers, restored.skipped, restored.input_shape) == (network.layers, network.skipped, network.input_shape)
    assert [node.name for node in restored.graph.graph.nodes] == [node.name for node in network.graph.graph.nodes]
    x = torch.randn(4, *network.input_shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(restored(x), network(x))
    again = restored.with_parameters({restored.layers[0].name: (torch.zeros(restored.layers[0].weight_shape), None)})
    assert digest(again) != digest(network)


def test_the_same_network_gives_the_same_bytes(network, files):
    assert serialize_network(network) == files
    assert serialize_network(deserialize_network(files)) == files


def test_a_missing_file_is_an_error(files):
    for name in files:
        with pytest.raises(FileError, match=f"^plan/network has no file {name}"):
            deserialize_network({other: content for other, content in files.items() if other != name}, "plan/network")


@pytest.mark.parametrize("name", ["network.json", "network.safetensors"])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\xff" * len(data)])
def test_a_damaged_file_is_refused(files, name, damage):
    with pytest.raises(FileError):
        deserialize_network(files | {name: damage(files[name])})


def test_parameters_of_another_network_are_refused(network, files):
    other = serialize_network(network.with_parameters({"2": (torch.zeros(2, 5), network.bias("2"))}))
    with pytest.raises(FileError, match="does not belong to"):
        deserialize_network(files | {TENSOR_FILE: other[TENSOR_FILE]})


def set_node(operation, **entries):
    def change(document):
        node = next(node for node in document["graph"]["nodes"] if node["op"] == operation)
        node.update(entries)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda document: document.update(schema=99), "reads schema 1"),
        (lambda document: document.update(format="other"), "does not describe a network"),
        (lambda document: document.pop("layers"), "damaged"),
        (lambda document: document.update(input_shape=[7]), "damaged"),
        (lambda document: document["layers"][0].update(node="nothing"), "no node 'nothing'"),
        (lambda document: document["layers"][0].update(kind="conv9"), "conv9"),
        (lambda document: document["graph"]["nodes"].pop(), "damaged"),
        (set_node("get_attr", target="0.absent"), "holds no tensor"),
        (set_node("call_function", args=[{"node": "absent"}]), "damaged"),
        (set_node("call_function", target="aten.relu_.default"), "only ATen operations"),
        (set_node("call_function", target="aten.from_file.default"), "only ATen operations"),
        (set_node("call_function", target="aten.save.default"), "only ATen operations"),
        (set_node("call_function", target="os.system"), "only ATen operations"),
        (set_node("call_function", target="operator.methodcaller"), "only ATen operations"),
        (set_node("call_function", target="builtins.eval"), "only ATen operations"),
        (set_node("call_function", kwargs={"a=0); import os; (b": 1}), "must be identifiers"),
        (set_node("placeholder", name="x): import os #"), "must be identifiers"),
        (set_node("get_attr", target='weight"); import os; ("'), "invalid name"),
    ],
)
def test_an_edited_description_is_refused(files, change, words):
    document = json.loads(files[GRAPH_FILE])
    change(document)
    with pytest.raises(FileError, match=words):
        deserialize_network(files | {GRAPH_FILE: json.dumps(document).encode()})


def test_a_custom_operation_is_refused_when_it_is_saved():
    with torch.library._scoped_library("cfptq_test_serialize", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: 2 * x, "CompositeExplicitAutograd")

        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(4, 2)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.ops.cfptq_test_serialize.twice(self.layer(x))

        network = capture(Twice(), torch.ones(3, 4))
        with pytest.raises(ModelError, match=r"cfptq_test_serialize\.twice"):
            serialize_network(network)
