"""A network on disk comes back as it was, or not at all."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from cfptq.errors import FileError, ModelError
from cfptq.network import Network, capture


@pytest.fixture(scope="module")
def network() -> Network:
    return capture(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), torch.ones(3, 4))


@pytest.fixture
def saved(network, tmp_path):
    """A saved MLP: the network and its folder."""
    network.save(tmp_path / "network")
    return network, tmp_path / "network"


def edit(folder, change) -> None:
    path = folder / "network.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_what_is_read_back_is_the_same_network(captured, tmp_path):
    _, network = captured
    network.save(tmp_path / "network")
    restored = Network.load(tmp_path / "network")
    assert restored.digest() == network.digest()
    assert (restored.layers, restored.skipped, restored.input_shape) == (network.layers, network.skipped, network.input_shape)
    assert [node.name for node in restored.graph.graph.nodes] == [node.name for node in network.graph.graph.nodes]
    x = torch.randn(4, *network.input_shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(restored(x), network(x))
    again = restored.with_parameters({restored.layers[0].name: (torch.zeros(restored.layers[0].weight_shape), None)})
    assert again.digest() != network.digest()


def test_the_same_network_gives_the_same_bytes(saved, tmp_path):
    network, folder = saved
    network.save(tmp_path / "again")
    Network.load(folder).save(tmp_path / "third")
    for name in ("network.json", "network.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes() == (tmp_path / "third" / name).read_bytes()


def test_saving_over_a_network_replaces_it(saved):
    network, folder = saved
    changed = network.with_parameters({"2": (torch.zeros(2, 5), None)})
    changed.save(folder)
    assert Network.load(folder).digest() == changed.digest()


def test_a_missing_folder_is_said_so(tmp_path):
    with pytest.raises(FileError, match="cannot read"):
        Network.load(tmp_path / "nowhere")


def test_a_place_that_cannot_be_written_is_said_so(saved, tmp_path):
    network, _ = saved
    with pytest.raises(FileError, match="cannot make the folder"):
        network.save(tmp_path / "no" / "such" / "place")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError):
        network.save(tmp_path / "file")


@pytest.mark.parametrize("name", ["network.json", "network.safetensors"])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\xff" * len(data)])
def test_a_damaged_file_is_refused(saved, name, damage):
    _, folder = saved
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FileError):
        Network.load(folder)


def test_parameters_of_another_network_are_refused(saved, tmp_path):
    network, folder = saved
    network.with_parameters({"2": (torch.zeros(2, 5), network.bias("2"))}).save(tmp_path / "other")
    (folder / "network.safetensors").write_bytes((tmp_path / "other" / "network.safetensors").read_bytes())
    with pytest.raises(FileError, match="does not belong to"):
        Network.load(folder)


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
        (set_node("call_function", target="aten.relu_.default"), "not an operation"),
        (set_node("call_function", target="aten.from_file.default"), "not an operation"),
        (set_node("call_function", target="aten.save.default"), "not an operation"),
        (set_node("call_function", target="os.system"), "not an operation"),
        (set_node("call_function", target="operator.methodcaller"), "not an operation"),
        (set_node("call_function", target="builtins.eval"), "not an operation"),
        (set_node("call_function", kwargs={"a=0); import os; (b": 1}), "no identifier"),
        (set_node("placeholder", name="x): import os #"), "no identifier"),
        (set_node("get_attr", target='weight"); import os; ("'), "impossible name"),
    ],
)
def test_an_edited_description_is_refused(saved, change, words):
    _, folder = saved
    edit(folder, change)
    with pytest.raises(FileError, match=words):
        Network.load(folder)


def test_a_custom_operation_is_refused_when_it_is_saved(tmp_path):
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
            network.save(tmp_path / "network")
        assert not (tmp_path / "network").exists()
