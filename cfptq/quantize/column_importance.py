"""Choice of the input columns that have one bit more than their channel."""

from __future__ import annotations

from cfptq.network import DecisionRule, Network
from cfptq.quantize.activation_ranges import measure_slopes
from cfptq.quantize.calibration_set import CalibrationSet
from cfptq.quantize.quantizer import Activations, choose_input_bits

#: Fewest columns of a layer that are worth splitting. A file stores the two halves apart.
MIN_SPLIT_COLUMNS = 8


def choose_fine_inputs(
    network: Network, calibration: CalibrationSet, decision: DecisionRule, activations: Activations
) -> dict[str, tuple[bool, ...]]:
    """Choose the finer half of the columns of each linear layer that takes the model's input in float.

    A column matters by the weighted mean, over rows, of its squared deviation times the squared gradient of the margin in the layer's
    outputs. The rounding errors of its weights are multiplied by it.

    Args:
        network: the network whose layers are rounded.
        calibration: rows, weights and targets.
        decision: head of the network's raw output and decision threshold.
        activations: formats of the tensors that feed quantized layers.

    Returns:
        True for each fine column and False for each coarse one, by the name of the layer. Empty where no layer is split.
    """
    input_bits, _ = choose_input_bits(network, activations.input_bits)
    fed = [layer for layer in network.layers if layer.input == network.input_name]
    split = [layer for layer in fed if layer.kind == "linear" and layer.weight_shape[1] >= MIN_SPLIT_COLUMNS]
    if input_bits != 32 or not split or calibration.rows.dim() != 2:
        return {}
    nodes = {layer.node: -1 for layer in split}
    measured = measure_slopes(network, calibration.rows, calibration.weights, calibration.target, decision, nodes)
    share = calibration.weights / calibration.weights.sum()
    deviation = (calibration.rows - share @ calibration.rows).square()
    found = {}
    for layer in split:
        importance = measured[layer.node].pull.sum(dim=(1, 2)) @ deviation
        finer = set(importance.argsort(descending=True, stable=True)[: (len(importance) + 1) // 2].tolist())
        found[layer.name] = tuple(column in finer for column in range(len(importance)))
    return found
