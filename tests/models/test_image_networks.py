"""Convolutional networks are captured, quantized per channel and run in ONNX Runtime with the decisions of their twins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import cfptq
from cfptq.actions import LatentActionSet, SemanticActionSet
from cfptq.auditing import Protocol
from cfptq.errors import ModelError
from cfptq.models import Autoencoder, ResNet18, SmallCNN
from cfptq.network import OnnxModule, as_predictor, capture, decide, to_onnx_model
from cfptq.network.onnx.file import OnnxFile

SIDE = 8


def images(count: int = 48, channels: int = 1) -> Tensor:
    return torch.rand(count, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(7))


def settle(model: nn.Module) -> nn.Module:
    """Give BatchNorm the statistics of some images, and spread the decisions of an untrained network over the classes."""
    model.train()
    with torch.no_grad():
        for _ in range(5):
            model(images(64))
        model.eval()
        head = model.head
        assert isinstance(head, nn.Linear)
        logits = model(images(64))
        head.weight.mul_(1 / logits.std(0)[:, None])
        head.bias.zero_()
        head.bias.sub_(model(images(64)).median(0).values)
    return model


@pytest.fixture(scope="module")
def space() -> LatentActionSet:
    coder = Autoencoder(side=SIDE, code=4, widths=(4, 4), seed=1).eval()
    return LatentActionSet(coder.encoder, coder.decoder, (1, SIDE, SIDE), radius=20.0)


@pytest.mark.parametrize(
    ("model", "method"),
    [(SmallCNN(side=SIDE, classes=3, widths=(4, 6, 8), batch_norm=True), "faithful"), (ResNet18(classes=3, width=4), "ptq")],
    ids=["small", "resnet"],
)
def test_the_file_of_an_image_network_decides_as_its_twin(model: nn.Module, method: str, space: LatentActionSet, tmp_path: Path) -> None:
    settle(model)
    rows = images()
    target = int(model(rows).argmax(1).bincount(minlength=3).argmin())
    result = cfptq.calibrate(model, [rows], space, target=target, method=method, progress=False)
    assert result.plan.average_bits <= 4.0
    result.to_onnx(tmp_path / "model.onnx", check=True)
    twin = as_predictor(result.module(), example=rows)
    with torch.no_grad():
        run = OnnxFile(tmp_path / "model.onnx").run(rows)
    margin = twin.logits(rows).topk(2, dim=1).values
    clear = margin[:, 0] - margin[:, 1] > 0.05
    assert torch.equal(decide(run)[clear], decide(twin.logits(rows))[clear])


def test_weights_of_convolutions_have_a_scale_for_each_channel(space: LatentActionSet) -> None:
    model = settle(ResNet18(classes=3, width=4))
    result = cfptq.calibrate(model, [images()], space, target=0, method="ptq", progress=False)
    for layer in result.plan.layers:
        assert layer.scale.numel() == result.network.layer(layer.name).weight_shape[0]


def test_a_users_own_onnx_network_is_quantized_and_audited(space: LatentActionSet, tmp_path: Path) -> None:
    network = capture(settle(SmallCNN(side=SIDE, classes=3, widths=(4, 6, 8), batch_norm=True)), images(2))
    source, written = tmp_path / "own.onnx", tmp_path / "quantized.onnx"
    source.write_bytes(to_onnx_model(network).SerializeToString())
    rows = images()
    with torch.no_grad():  # The class of most reconstructions, which moves of codes reach.
        target = int(network(space.coder.decode(space.coder.encode(rows))).argmax(1).mode().values)
    cfptq.calibrate(str(source), [rows], space, target=target, progress=False).to_onnx(written, check=True)
    report = cfptq.audit(
        str(source),
        str(written),
        rows,
        space,
        target=target,
        protocol=Protocol(max_people=8, confidences=(0.5,), resamples=50),
        progress=False,
    )
    assert 0 <= report.boundary_disagreement <= 1


def test_attributes_of_images_work_where_codes_do(tmp_path: Path) -> None:
    coder = Autoencoder(side=SIDE, code=4, widths=(4, 4), seed=1).eval()
    edits = SemanticActionSet(
        ("light", "shape"), 30.0, encoder=coder.encoder, decoder=coder.decoder, row_shape=(1, SIDE, SIDE), edit_bounds=(-20.0, 20.0),
        directions=((1.0, 0.0, 1.0, 0.0), (0.0, 1.0, 0.0, -1.0)),
    )  # fmt: skip
    model = settle(SmallCNN(side=SIDE, classes=3, widths=(4, 6, 8)))
    with torch.no_grad():  # Biases of a network that was not trained hide what the rows change.
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    rows = images(16)
    target = int(model(rows).argmax(1).bincount(minlength=3).argmin())
    result = cfptq.calibrate(model, [rows], edits, target=target, method="ptq", budget=8.0, progress=False)
    result.to_onnx(tmp_path / "model.onnx", check=True)


def test_the_published_width_of_resnet18_has_its_number_of_weights() -> None:
    # He et al.'s network for 10 classes with a 3×3 stem and one channel.
    count = sum(parameter.numel() for parameter in ResNet18(classes=10).parameters())
    assert count == 11_172_810


def test_an_autoencoder_reads_its_own_shapes() -> None:
    coder = Autoencoder(side=SIDE, code=4, widths=(4, 4)).eval()
    rows = images(3)
    with torch.no_grad():
        code, again = coder.encoder(rows), coder(rows)
    assert code.shape == (3, 4) and again.shape == rows.shape
    assert float(again.min()) >= 0 and float(again.max()) <= 1
    twin = OnnxModule(to_onnx_model(capture(coder.decoder, torch.randn(2, 4))))
    code = torch.randn(5, 4)
    torch.testing.assert_close(twin(code), coder.decoder(code), atol=1e-5, rtol=0)


def test_equal_seeds_give_equal_weights_and_leave_the_random_state() -> None:
    state = torch.get_rng_state()
    first, again, other = SmallCNN(seed=3), SmallCNN(seed=3), SmallCNN(seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.head.weight, again.head.weight) and not torch.equal(first.head.weight, other.head.weight)


@pytest.mark.parametrize(
    "build", [lambda: SmallCNN(side=6), lambda: SmallCNN(classes=1), lambda: ResNet18(width=0), lambda: Autoencoder(code=0)]
)
def test_sizes_that_make_no_network_are_refused(build: object) -> None:
    with pytest.raises(ModelError):
        build()  # type: ignore[operator]
