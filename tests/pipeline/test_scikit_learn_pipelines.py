"""Fitted scikit-learn pipelines in, one file with raw columns or a classifier out."""

from __future__ import annotations

import dataclasses
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import (
    Binarizer,
    FunctionTransformer,
    KBinsDiscretizer,
    OneHotEncoder,
    OrdinalEncoder,
    PowerTransformer,
    QuantileTransformer,
    StandardScaler,
    TargetEncoder,
)

import cfptq
from cfptq.errors import ModelError
from cfptq.network.scikit_learn import read_classifier
from cfptq.pipeline.preprocessing import put_preprocessing_before

JOBS = ["Sales", "Tech", "Office", "Farm", "Mine", "Fish"]
NUMBERS = ["income", "savings", "age"]


def people(rows: int = 400, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "income": rng.lognormal(10, 0.6, rows).round(2),
            "savings": rng.integers(0, 60_000, rows),
            "age": rng.integers(18, 80, rows),
            "job": rng.choice(JOBS, rows, p=[0.4, 0.3, 0.18, 0.05, 0.04, 0.03]),
            "owner": rng.random(rows) < 0.3,
            "region": rng.choice([10, 20, 30], rows),
        }
    )


def accepted(frame: pd.DataFrame) -> np.ndarray[Any, Any]:
    return np.where(np.log(frame["income"]) + 0.4 * frame["owner"] + 0.3 * (frame["job"] == "Tech") > 10.2, "yes", "no")


def usual_encoder() -> ColumnTransformer:
    return ColumnTransformer(
        [
            ("log", make_pipeline(FunctionTransformer(np.log1p, np.expm1), StandardScaler()), ["income", "savings"]),
            ("bins", KBinsDiscretizer(4, encode="onehot-dense", quantile_method="averaged_inverted_cdf"), ["age"]),
            ("words", OneHotEncoder(min_frequency=0.1, handle_unknown="infrequent_if_exist"), ["job", "owner"]),
            ("codes", OneHotEncoder(drop="first"), ["region"]),
        ],
        sparse_threshold=0,
    )


@pytest.fixture(scope="module")
def fitted() -> Any:
    frame = people()
    model = make_pipeline(usual_encoder(), MLPClassifier((12,), max_iter=150, random_state=0)).fit(frame, accepted(frame))
    action_set = cfptq.ActionSet.from_frame(frame, immutable=["age"], categorical=["region"], favourable=1)
    result = cfptq.calibrate(model, (frame, accepted(frame)), action_set, method="ptq", progress=False)
    return model, result, frame


def feed(path: Path, frame: pd.DataFrame) -> list[Any]:
    session = onnxruntime.InferenceSession(path)
    kinds = {"tensor(double)": np.float64, "tensor(int64)": np.int64, "tensor(bool)": np.bool_, "tensor(string)": object}
    return session.run(None, {i.name: frame[[i.name]].to_numpy().astype(kinds[i.type]) for i in session.get_inputs()})  # type: ignore[no-any-return]


@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "identity"])
@pytest.mark.parametrize("classes", [2, 3])
def test_modules_compute_what_scikit_learn_computes(activation: str, classes: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, 4)).astype("f4")
    y = np.arange(80) % classes
    for model in (MLPClassifier((5, 4), activation=activation, max_iter=5, random_state=0), LogisticRegression()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(x, y)
        logits = read_classifier(model)(torch.from_numpy(x)).detach()
        shares = torch.cat((1 - logits.sigmoid(), logits.sigmoid()), 1) if classes == 2 else logits.softmax(1)
        np.testing.assert_allclose(shares.numpy(), model.predict_proba(x), atol=1e-5)


def test_another_classifier_is_refused_by_name() -> None:
    from sklearn.tree import DecisionTreeClassifier

    frame = people(40)
    with pytest.raises(ModelError, match="must end in MLPClassifier or LogisticRegression, got DecisionTreeClassifier"):
        cfptq.calibrate(
            DecisionTreeClassifier().fit(frame[NUMBERS], accepted(frame)), frame, cfptq.ActionSet.from_frame(frame), progress=False
        )


def test_a_pipeline_is_calibrated_on_raw_people_and_labels_of_its_own(fitted: Any) -> None:
    model, result, frame = fitted
    assert result.classes == ("no", "yes")
    assert result.calibration.rows.shape[1] == model[:-1].transform(frame).shape[1]
    classifier = result.classifier(model[:-1])
    assert classifier.classes_.tolist() == ["no", "yes"]
    assert accuracy_score(model.predict(frame), classifier.predict(frame)) > 0.95
    shares = classifier.predict_proba(frame)
    np.testing.assert_allclose(shares.sum(1), 1)
    assert (
        abs(
            roc_auc_score(accepted(frame) == "yes", shares[:, 1])
            - roc_auc_score(accepted(frame) == "yes", model.predict_proba(frame)[:, 1])
        )
        < 0.02
    )
    assert cross_val_score(classifier, frame, accepted(frame), cv=2).min() > 0.9
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(classifier)).predict(frame), classifier.predict(frame))
    on_columns = result.classifier()
    np.testing.assert_array_equal(on_columns.predict(model[:-1].transform(frame).astype("f4")), classifier.predict(frame))
    assert on_columns.n_features_in_ == result.network.input_shape[0]


def test_a_saved_result_keeps_the_classes(fitted: Any, tmp_path: Path) -> None:
    _, result, _ = fitted
    result.save(tmp_path / "plan")
    assert cfptq.load(tmp_path / "plan").classes == ("no", "yes")


@pytest.mark.filterwarnings("error::cfptq.errors.DataWarning")
@pytest.mark.parametrize("given", [False, True])
def test_one_file_decides_raw_people_as_encoder_and_file_do(fitted: Any, tmp_path: Path, given: bool) -> None:
    model, result, _ = fitted
    test = people(500, seed=1)
    result.to_onnx(tmp_path / "columns.onnx")
    result.to_onnx(tmp_path / "raw.onnx", preprocessing=model, people=test if given else None, outputs=("label", "probability"), check=True)
    scores, label, shares = feed(tmp_path / "raw.onnx", test)
    columns = model[:-1].transform(test).astype("f4")
    (alone,) = onnxruntime.InferenceSession(tmp_path / "columns.onnx").run(None, {"input": columns})
    np.testing.assert_array_equal(scores, alone)
    classifier = result.classifier(model[:-1])
    assert label.tolist() == classifier.predict(test).tolist()
    np.testing.assert_allclose(shares, classifier.predict_proba(test), atol=1e-6)
    kinds = {value.name: value.type for value in onnxruntime.InferenceSession(tmp_path / "raw.onnx").get_inputs()}
    whole = "tensor(int64)" if given else "tensor(double)"
    assert kinds == {
        "income": "tensor(double)", "savings": whole, "age": whole,
        "job": "tensor(string)", "owner": "tensor(bool)", "region": "tensor(int64)",
    }  # fmt: skip


def test_a_file_with_preprocessing_is_audited_with_raw_people(fitted: Any, tmp_path: Path) -> None:
    model, result, frame = fitted
    test = people(40, seed=2)
    action_set = cfptq.ActionSet.from_frame(frame, immutable=["age"], categorical=["region"], favourable=1).encoded_by(model)
    result.to_onnx(tmp_path / "columns.onnx")
    result.to_onnx(tmp_path / "raw.onnx", preprocessing=model)
    module = read_classifier(model[-1])
    raw = cfptq.audit(module, tmp_path / "raw.onnx", test, action_set, progress=False)
    plain = cfptq.audit(module, tmp_path / "columns.onnx", test, action_set, progress=False)
    assert raw.validity_drop == plain.validity_drop
    np.testing.assert_equal(dataclasses.asdict(raw.metrics), dataclasses.asdict(plain.metrics))
    assert not [remark for remark in raw.remarks if remark.kind == "other columns"]
    shifted = frame.assign(income=frame["income"] * 3)
    other = cfptq.ActionSet.from_frame(frame, categorical=["region"], favourable=1).encoded_by(usual_encoder().fit(shifted))
    told = cfptq.audit(module, tmp_path / "raw.onnx", test, other, progress=False).remarks
    assert [(remark.kind, remark.count) for remark in told if remark.column == "raw.onnx"] == [("other columns", 40)]


def test_a_file_of_another_exporter_is_audited_with_raw_people(tmp_path: Path) -> None:
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    frame = people(200)[["income", "age", "job"]].astype({"age": float})
    numbers = StandardScaler()
    encoder = ColumnTransformer([("n", numbers, ["income", "age"]), ("w", OneHotEncoder(sparse_output=False), ["job"])])
    model = make_pipeline(encoder, LogisticRegression()).fit(frame, frame["income"] > 25_000)
    types = [(name, FloatTensorType([None, 1])) for name in ("income", "age")] + [("job", StringTensorType([None, 1]))]
    (tmp_path / "skl.onnx").write_bytes(to_onnx(model, initial_types=types, options={"zipmap": False}).SerializeToString())
    action_set = cfptq.ActionSet.from_frame(frame, favourable=1).encoded_by(encoder)
    report = cfptq.audit(read_classifier(model[-1]), tmp_path / "skl.onnx", frame, action_set, progress=False)
    assert report.quantized.name == "skl.onnx"
    assert report.validity_drop < 0.2
    with pytest.raises(ModelError, match=r"takes raw columns \(income, age, job\), so people must be a DataFrame"):
        cfptq.audit(read_classifier(model[-1]), tmp_path / "skl.onnx", action_set.encode(frame), action_set, progress=False)


STEPS = {
    "yeo-johnson": PowerTransformer,
    "box-cox": lambda: PowerTransformer("box-cox"),
    "quantiles": lambda: QuantileTransformer(n_quantiles=30),
    "normal quantiles": lambda: QuantileTransformer(n_quantiles=30, output_distribution="normal"),
    "sqrt": lambda: FunctionTransformer(np.sqrt, np.square),
    "cbrt": lambda: FunctionTransformer(np.cbrt),
    "arcsinh": lambda: FunctionTransformer(np.arcsinh, np.sinh),
    "log2": lambda: FunctionTransformer(np.log2, np.exp2),
    "threshold": lambda: Binarizer(threshold=30_000),
    "bins": lambda: KBinsDiscretizer(5, encode="ordinal", strategy="uniform"),
    "imputer": lambda: make_pipeline(SimpleImputer(add_indicator=True), StandardScaler()),
}
WORDS = {
    "target": lambda: make_pipeline(TargetEncoder(random_state=0), StandardScaler()),
    "codes": lambda: OrdinalEncoder(min_frequency=0.1, handle_unknown="use_encoded_value", unknown_value=-1),
    "filled": lambda: make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(sparse_output=False)),
    "missing is a level": lambda: OneHotEncoder(drop="first"),
}


@pytest.mark.parametrize("name", [*STEPS, *WORDS])
def test_every_encoder_has_nodes_that_agree_with_it(name: str) -> None:
    import onnx
    from onnx import TensorProto, helper

    from cfptq.network import DecisionRule, Head

    frame = people(600, seed=3)
    frame["savings"] += 1
    if name == "imputer":
        frame["income"] = frame["income"].where(frame.index % 5 > 0)
        frame["savings"] = frame["savings"].where(frame.index % 7 > 0)
    if name in ("filled", "missing is a level"):
        frame["job"] = frame["job"].where(frame.index % 6 > 0, np.nan)
    step, columns = (STEPS[name](), ["income", "savings"]) if name in STEPS else (WORDS[name](), ["job"])
    gap = [("gap", MissingIndicator(), ["job"])] if name == "filled" else []
    encoder = ColumnTransformer([("one", step, columns), *gap], sparse_threshold=0).fit(frame, accepted(frame) == "yes")
    width = encoder.transform(frame).shape[1]
    node = helper.make_node("ReduceSum", ["input", "axis"], ["output"], keepdims=1)
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    graph = helper.make_graph(
        [node],
        "sum",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["rows", width])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["rows", 1])],
        [axis],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    joined = put_preprocessing_before(model, encoder, frame, None, 0, DecisionRule(Head.LOGIT))
    onnx.checker.check_model(joined)
    put_preprocessing_before(model, encoder, None, None, 0, DecisionRule(Head.LOGIT))


def test_a_function_of_a_users_own_is_refused_by_name(fitted: Any, tmp_path: Path) -> None:
    _, result, frame = fitted
    width = result.network.input_shape[0]
    wide = pd.DataFrame({f"c{place}": frame["income"] for place in range(width)})
    own = ColumnTransformer([("own", FunctionTransformer(np.negative, np.negative), list(wide))]).fit(wide)
    with pytest.raises(ModelError, match=r"encoder of 'c0' \(FunctionTransformer with a function of your own\) has no form"):
        result.to_onnx(tmp_path / "own.onnx", preprocessing=own)
    assert not (tmp_path / "own.onnx").exists()


def test_an_encoder_of_another_width_is_refused(fitted: Any, tmp_path: Path) -> None:
    _, result, frame = fitted
    small = ColumnTransformer([("n", StandardScaler(), ["income"])]).fit(frame)
    with pytest.raises(ModelError, match="must give the 14 columns that the model takes, got 1"):
        result.to_onnx(tmp_path / "small.onnx", preprocessing=Pipeline([("n", small)]))
