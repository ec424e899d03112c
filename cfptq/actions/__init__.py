"""Action sets, which declare the changes a person can make and their cost.

The package also projects actions, encodes raw rows as the model's columns, and describes actions in words.
"""

from cfptq.actions.action_set import ActionSet
from cfptq.actions.action_space import ActionSpace
from cfptq.actions.constraints import (
    AtMost,
    Changes,
    Computed,
    Constraint,
    Implies,
    Is,
    Linked,
    Ordered,
    PerPerson,
    SpecialCodes,
    Stays,
    StepLimit,
    Thermometer,
    Transitions,
    Was,
    propose_constraints,
)
from cfptq.actions.cost import Norm, Weights
from cfptq.actions.curves import NumberEncoder
from cfptq.actions.features import AnyFeature, Categorical, Continuous, Integer, Mutability, Ordinal, Statistics
from cfptq.actions.latent import LatentActionSet
from cfptq.actions.loading import load_action_space
from cfptq.actions.remarks import Remark
from cfptq.actions.semantic import SemanticActionSet
from cfptq.actions.validation import Level

__all__ = [
    "ActionSet",
    "ActionSpace",
    "AnyFeature",
    "AtMost",
    "Categorical",
    "Changes",
    "Computed",
    "Constraint",
    "Continuous",
    "Implies",
    "Integer",
    "Is",
    "LatentActionSet",
    "Level",
    "Linked",
    "Mutability",
    "Norm",
    "NumberEncoder",
    "Ordered",
    "Ordinal",
    "PerPerson",
    "Remark",
    "SemanticActionSet",
    "SpecialCodes",
    "Statistics",
    "Stays",
    "StepLimit",
    "Thermometer",
    "Transitions",
    "Was",
    "Weights",
    "load_action_space",
    "propose_constraints",
]
