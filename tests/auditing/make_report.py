"""A report with letters and hostile names, for tests of its page."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from halfline import QUICK
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from cfptq.actions import ActionSet
from cfptq.auditing import AuditReport, run_audit
from cfptq.testing import random_classifier

#: A category that a page must show as it is, and not run.
HOSTILE = "<script>document.title='owned';document.body.innerHTML=''</script>"


def make_report(count: int = 120) -> AuditReport:
    """Audit letters to people whose job, group and key would be markup."""
    draw = np.random.default_rng(0)
    jobs = ["clerk", "nurse", HOSTILE]
    people = pd.DataFrame(
        {
            "age": draw.integers(18, 80, count),
            "income": draw.lognormal(3.4, 0.4, count).round(2),
            "debt": draw.exponential(8.0, count).round(2),
            "job": draw.choice(jobs, count),
            "id": [f"<img src=x onerror=alert({row})>" for row in range(count)],
        }
    )
    steps = [("n", StandardScaler(), ["age", "income", "debt"]), ("job", OneHotEncoder(sparse_output=False), ["job"])]
    features = people.drop(columns="id")
    actions = ActionSet.from_frame(features, immutable=["age"], favourable=1).encoded_by(ColumnTransformer(steps).fit(features))
    f = random_classifier(actions.encode(features), seed=2)
    letters = people.assign(income=people["income"] + 5, debt=people["debt"] * 0.5, job=HOSTILE)
    logits = f(actions.encode(letters)).detach()
    margin = logits[:, 1] - logits[:, 0]
    bar = torch.tensor([0.0, float(margin[margin > 0].median())])
    groups = {"job": people["job"], "age": np.where(people["age"] > 40, "over 40", "up to 40")}
    protocol = replace(QUICK, max_people=60)
    return run_audit(f, lambda x: f(x) - bar, people, actions, issued=letters, id="id", groups=groups, protocol=protocol, progress=False)
