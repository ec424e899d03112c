"""A file with preprocessing on adult: agreement with the pipeline followed by the file, and latency beside scikit-learn's transform.

One development network (``MLPClassifier``, two layers of 64, random state 0) behind logarithms, quantiles, bins, target codes, infrequent
categories and standardized numbers. Agreement is that of all test people, the medians of latency are of repeated calls.

    CFPTQ_DATA_DIR=... python benchmarks/raw_files.py     # a few minutes on two cores
    python benchmarks/raw_files.py --show                 # the figures
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from sklearn.compose import ColumnTransformer
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, KBinsDiscretizer, OneHotEncoder, QuantileTransformer, StandardScaler, TargetEncoder

import cfptq
from cfptq import datasets
from cfptq.io.atomic import write_text
from cfptq.network.onnx.raw_inputs import to_inputs
from cfptq.network.onnx.session import describe_runtime
from cfptq.pipeline.preprocessing import encode_with

OUT = Path(__file__).parent / "results" / "raw_files.json"
BATCHES, REPEATS = (1, 256, 4096), 15


def build_encoder() -> ColumnTransformer:
    """Build an encoder with one step of each common kind."""
    return ColumnTransformer(
        [
            ("log", make_pipeline(FunctionTransformer(np.log1p, np.expm1), StandardScaler()), ["capital-gain", "capital-loss"]),
            ("bins", KBinsDiscretizer(6, encode="onehot-dense", quantile_method="averaged_inverted_cdf"), ["age"]),
            ("quantiles", QuantileTransformer(n_quantiles=50), ["hours-per-week"]),
            ("scale", StandardScaler(), ["education-num"]),
            ("target", make_pipeline(TargetEncoder(random_state=0), StandardScaler()), ["occupation"]),
            (
                "words",
                OneHotEncoder(min_frequency=0.02, handle_unknown="infrequent_if_exist", sparse_output=False),
                ["workclass", "marital-status", "relationship", "race", "sex", "native-country"],
            ),
        ]
    )


def measure_median(call: Callable[[], Any]) -> float:
    """Return the median time of a call in milliseconds."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def measure() -> dict[str, Any]:
    """Return the figures."""
    data = datasets.load("adult")
    train, test = data.train, data.test
    names = np.array(data.label_names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = make_pipeline(build_encoder(), MLPClassifier((64, 64), max_iter=6, random_state=0)).fit(train, names[data.train_labels])
        action_set = cfptq.ActionSet.from_frame(train, immutable=["age", "race", "sex", "native-country"], favourable=1)
        people = train.sample(1024, random_state=0)
        result = cfptq.calibrate(pipeline, people, action_set, progress=False)
        with tempfile.TemporaryDirectory() as folder:
            columns_file, raw_file = Path(folder) / "columns.onnx", Path(folder) / "raw.onnx"
            result.to_onnx(columns_file)
            result.to_onnx(raw_file, preprocessing=pipeline, people=test, outputs=("label",))
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            alone, whole = (onnxruntime.InferenceSession(path, options) for path in (columns_file, raw_file))
            content = onnx.load(raw_file)
            sizes = {"columns": columns_file.stat().st_size, "raw": raw_file.stat().st_size}
            encoded = encode_with(pipeline, test)
            (expected,) = alone.run(None, {"input": encoded})
            scores, label = whole.run(None, to_inputs(content, test))
            theirs = result.classifier(pipeline).predict(test)
            latency: dict[str, Any] = {}
            for batch in BATCHES:
                frame = test.iloc[:batch]
                fed, ready = to_inputs(content, frame), encode_with(pipeline, frame)
                latency[str(batch)] = {
                    "scikit-learn transform": measure_median(lambda frame=frame: encode_with(pipeline, frame)),
                    "file of columns": measure_median(lambda ready=ready: alone.run(None, {"input": ready})),
                    "file of raw columns": measure_median(lambda fed=fed: whole.run(None, fed)),
                }
    return {
        "people": len(test),
        "columns": int(encoded.shape[1]),
        "people_with_other_scores": int((np.abs(scores - expected).reshape(len(test), -1).max(1) > 0).sum()),
        "people_decided_otherwise": int((label != theirs).sum()),
        "agreement_with_the_pipeline": float(np.mean(label == pipeline.predict(test))),
        "accuracy_of_the_pipeline": float(pipeline.score(test, names[data.test_labels])),
        "accuracy_of_the_file": float(np.mean(label == names[data.test_labels])),
        "bytes": sizes,
        "milliseconds": latency,
        "runtime": describe_runtime(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="show the stored figures")
    if not parser.parse_args().show:
        write_text(OUT, json.dumps(measure(), indent=1) + "\n")
    print(OUT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
