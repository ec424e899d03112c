"""Constraints on actions, which say what a person can do beyond each feature's own rules."""

from cfptq.actions.constraints.base import Constraint
from cfptq.actions.constraints.consequences import Changes, Computed, Implies, Is, Linked, Stays, Was
from cfptq.actions.constraints.limits import AtMost, SpecialCodes, StepLimit, Transitions
from cfptq.actions.constraints.orders import Ordered, Thermometer
from cfptq.actions.constraints.people import PerPerson
from cfptq.actions.constraints.proposals import propose_constraints

__all__ = [
    "AtMost",
    "Changes",
    "Computed",
    "Constraint",
    "Implies",
    "Is",
    "Linked",
    "Ordered",
    "PerPerson",
    "SpecialCodes",
    "Stays",
    "StepLimit",
    "Thermometer",
    "Transitions",
    "Was",
    "propose_constraints",
]
