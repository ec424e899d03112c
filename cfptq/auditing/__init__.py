"""Audits of recourse between a full-precision and a quantized model.

``reference_recourse`` runs once for a full-precision model and its rows. ``evaluate`` runs once for each quantized model. ``run_audit``
runs both for a pair of models and checks advice that was already issued.
"""

from cfptq.auditing.audit import run_audit
from cfptq.auditing.evaluation import evaluate
from cfptq.auditing.gate import Gate
from cfptq.auditing.group_metrics import Grouping, GroupMetrics
from cfptq.auditing.inputs import split_by_group
from cfptq.auditing.issued import IssuedAdvice, LetterOutcome, check_issued
from cfptq.auditing.layerwise_bound import LayerwiseBound, bound_perturbation
from cfptq.auditing.letters import Letters, read_letters
from cfptq.auditing.margin_estimate import MarginEstimate, estimate_first_order, estimate_margins
from cfptq.auditing.pictures import draw_changes
from cfptq.auditing.plots import Plot
from cfptq.auditing.protocol import Protocol, ReferenceRecourse, reference_recourse
from cfptq.auditing.recourse_metrics import RecourseMetrics
from cfptq.auditing.recourse_proof import RecourseProof, RecourseProver
from cfptq.auditing.report import AuditedModel, AuditReport
from cfptq.auditing.robustness import Robustness
from cfptq.auditing.shift import add_feature_noise, draw_with_shares
from cfptq.io.json import canonicalize, to_canonical_json

__all__ = [
    "AuditReport",
    "AuditedModel",
    "Gate",
    "GroupMetrics",
    "Grouping",
    "IssuedAdvice",
    "LayerwiseBound",
    "LetterOutcome",
    "Letters",
    "MarginEstimate",
    "Plot",
    "Protocol",
    "RecourseMetrics",
    "RecourseProof",
    "RecourseProver",
    "ReferenceRecourse",
    "Robustness",
    "add_feature_noise",
    "bound_perturbation",
    "canonicalize",
    "check_issued",
    "draw_changes",
    "draw_with_shares",
    "estimate_first_order",
    "estimate_margins",
    "evaluate",
    "read_letters",
    "reference_recourse",
    "run_audit",
    "split_by_group",
    "to_canonical_json",
]
