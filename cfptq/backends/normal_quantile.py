"""The quantile function of the normal distribution as ONNX nodes.

Wichura, Algorithm AS 241: The percentage points of the normal distribution, Applied Statistics 37 (1988). Its error is about 1e-16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cfptq.actions.curves import NORMAL_LIMITS

_CENTRE = (
    (3.3871328727963666080, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4, 4.5921953931549871457e4,
     6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3),
    (1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3, 2.1213794301586595867e4, 3.9307895800092710610e4,
     2.8729085735721942674e4, 5.2264952788528545610e3),
)  # fmt: skip
_MIDDLE = (
    (1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550, 3.64784832476320460504, 1.27045825245236838258,
     2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4),
    (1.0, 2.05319162663775882187, 1.67638483018380384940, 6.89767334985100004550e-1, 1.48103976427480074590e-1, 1.51986665636164571966e-2,
     5.47593808499534494600e-4, 1.05075007164441684324e-9),
)  # fmt: skip
_TAIL = (
    (6.65790464350110377720, 5.46378491116411436990, 1.78482653991729133580, 2.96560571828504891230e-1, 2.65321895265761230930e-2,
     1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7),
    (1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2, 7.86869131145613259100e-4,
     1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15),
)  # fmt: skip


def add_normal_quantile(add: Callable[..., str], hold: Callable[..., str], share: str) -> str:
    """Add the nodes from shares between 0 and 1 to normal quantiles, cut as ``QuantileTransformer`` cuts them.

    Args:
        add: adds a node and returns the name of its output.
        hold: adds a constant and returns its name.
        share: name of the shares, float64.
    """

    def divide(pair: tuple[Sequence[float], Sequence[float]], at: str) -> str:
        ends = []
        for coefficients in pair:
            value = hold(coefficients[-1])
            for coefficient in reversed(coefficients[:-1]):
                value = add("Add", add("Mul", value, at), hold(coefficient))
            ends.append(value)
        return add("Div", *ends)

    q = add("Sub", share, hold(0.5))
    central = add("Mul", q, divide(_CENTRE, add("Sub", hold(0.180625), add("Mul", q, q))))
    tail = add("Min", share, add("Sub", hold(1.0), share))
    r = add("Sqrt", add("Neg", add("Log", add("Max", tail, hold(np.finfo(np.float64).tiny)))))
    middle, far = divide(_MIDDLE, add("Sub", r, hold(1.6))), divide(_TAIL, add("Sub", r, hold(5.0)))
    outer = add("Mul", add("Where", add("LessOrEqual", r, hold(5.0)), middle, far), add("Sign", q))
    value = add("Where", add("LessOrEqual", add("Abs", q), hold(0.425)), central, outer)
    low, high = NORMAL_LIMITS
    return add("Min", add("Max", value, hold(low)), hold(high))
