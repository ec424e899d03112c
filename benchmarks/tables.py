"""``benchmarks/README.md``, made from the results files, and the headline table of the README.

python benchmarks/tables.py                 # writes benchmarks/README.md
python benchmarks/tables.py --headline      # prints the table that stands in the README
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import data_sets  # noqa: E402
import faithful  # noqa: E402
import headline  # noqa: E402
import layer_scores  # noqa: E402
import main_tables  # noqa: E402
import method_times  # noqa: E402
import qat  # noqa: E402
import subgroups  # noqa: E402
import success_and_cost  # noqa: E402

from cfptq.io.atomic import write_text  # noqa: E402

INTRODUCTION = """# Benchmarks

Everything here is written by `python benchmarks/tables.py` from the files in `results/`; each section names the command that remakes its
file. Figures are mean ± standard deviation over seeds. A figure about a quantized model comes from running its file in ONNX Runtime.
Times are ratios of runs that took turns in one process.
"""


def results(name: str) -> Any:
    """The content of one results file."""
    return json.loads((HERE / "results" / f"{name}.json").read_text())


def table(heads: list[str], rows: list[list[str]]) -> Iterator[str]:
    """A Markdown table."""
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def overhead() -> Iterator[str]:
    """Time over export and ``quantize_static``, its shares, and latency by input."""
    content = dict(results("overhead"))
    latency = content.pop("latency by input")
    rows = [
        [f"{method}, {net}", f"{entry['ratio']:.2f}", f"{entry['cpu_ratio']:.2f}", f"{entry['ratio_without_export']:.1f}",
         ", ".join(f"{stage} {100 * share:.0f} %" for stage, share in entry["share_of_our_time"].items())]
        for method, nets in content.items() for net, entry in nets.items()
    ]  # fmt: skip
    yield from table(["", "wall", "processor", "wall, export left out", "where our time goes"], rows)
    for net, entry in latency.items():
        yield f"\nLatency of `faithful`'s file over `quantize_static`'s int8 file, {net}; the default input is {entry['chosen']}.\n"
        ratios = {name: each for name, each in entry["multiple_of_int8"].items() if name != "ONNX Runtime int8"}
        batches = list(next(iter(ratios.values())))
        yield from table(
            ["input", *(f"batch {batch}" for batch in batches)],
            [[name, *(f"{x:.2f}" for x in each.values())] for name, each in ratios.items()],
        )


def deployment() -> Iterator[str]:
    """Bytes and latency of files."""
    for net, content in results("deployment")["nets"].items():
        yield f"\n**{net}**, as multiples of ONNX Runtime's int8 file\n"
        rows = []
        for name, entry in content["files"].items():
            ratios = entry.get("us_ratio")
            if ratios:
                rows.append([name, f"{entry['bytes_ratio']:.2f}", *(f"{ratio:.2f}" for ratio in ratios.values())])
        batches = list(next(iter(content["files"].values()))["us"])
        yield from table(["file", "bytes", *(f"time at batch {batch}" for batch in batches)], rows)
        for name, slow in content["slower_than_fp32_at_batch"].items():
            yield f"\nfp32 is faster than {name} at batch {', '.join(map(str, slow))}."


def toolchains() -> Iterator[str]:
    """Every toolchain's own quantization beside ours."""
    content = results("toolchain_peers")
    spread = ("accuracy", "validity_drop", "recourse_gap_of_sums", "favourable_rate_drift")
    rows = []
    for name, entry in content["methods"].items():
        cells = [f"{entry[metric][0]:.4f} ± {entry[metric][1]:.4f}" for metric in spread]
        taken = [f"{each:.0f}" for each in (entry.get("latency_us") or {}).values()]
        rows.append([name, f"{entry['average_bits'][0]:.2f}", *cells, str(entry.get("stored_bytes") or "–"), " / ".join(taken) or "–"])
    yield from table(["method", "bits", "accuracy", "VD", "CRG of sums", "drift", "bytes", "µs at batch 1 / 256 / 4096"], rows)
    for name, why in content["unavailable"].items():
        yield f"\n{name}: {why}"


def peers() -> Iterator[str]:
    """Recourse solvers side by side."""
    content = results("recourse_peers")
    chosen = (
        "rows",
        "valid and feasible",
        "immutables changed",
        "out of range",
        "more than 3 changes",
        "mean cost of the valid",
        "proven to have no recourse",
        "rows a processor second",
    )
    for part in (key for key in content if key.endswith("rows") and isinstance(content[key], dict)):
        yield f"\n**{part}**\n"
        yield from table(
            ["solver", *chosen], [[name, *(f"{entry.get(key, '–')}" for key in chosen)] for name, entry in content[part].items()]
        )
    yield "\nTimes faster than DiCE, processor seconds a row, ours at 1,000 rows: {}.".format(
        ", ".join(
            f"{name.removeprefix('DiCE ')} {ratio:,}"
            for name, ratio in content["times faster, processor seconds a row (fast, at 1000 rows)"].items()
        )
    )
    yield "\n**Growth** (fast)\n"
    shown = ("rows", "refused", "found", "seconds", "processor seconds", "answers MB", "peak beyond the rows MB")
    yield from table(list(shown), [[f"{entry[key]:,}" for key in shown] for entry in content["growth (fast)"]])


def robust() -> Iterator[str]:
    """Recourse that holds in variants of the quantized model."""
    content = results("robust_recourse")
    shown = ("nominal success", "robust success", "robust success, fresh variants", "relative cost", "relative time")
    rows = []
    for name, seeds in content.items():
        if isinstance(seeds, dict):
            for solver, entry in seeds["mean and deviation"].items():
                rows.append([name, solver, *("{:.3f} ± {:.3f}".format(*entry[key]) for key in shown)])
    yield from table(["data set", "solver", *shown], rows)


def optimality() -> Iterator[str]:
    """Costs over proven optima."""
    content = results("recourse_optimality")
    rows = [
        [name, effort, f"{entry[effort]['mean_ratio']:.4f}", f"{entry[effort]['worst_ratio']:.3f}", str(entry[effort]["missed"])]
        for name, entry in content["datasets"].items() for effort in ("fast", "thorough")
    ]  # fmt: skip
    yield from table(["data set", "effort", "mean cost ratio", "worst", "missed"], rows)


def training() -> Iterator[str]:
    """Methods that train, and their plots."""
    yield "![Validity Drop and CRG against average bits](results/qat_curves.svg)\n"
    yield "![Widths of layers](results/qat_bits.svg)"
    yield from qat.markdown(results("qat"))


#: Heading, what it measures, the command, and the lines below.
SECTIONS: tuple[tuple[str, str, str, Callable[[], Iterator[str]]], ...] = (
    ("Training-free methods on the reporting seeds (Tables 13, 14)",
     "MLP 64-64, 4 average bits, the same 1,024 calibration rows for every method, up to 2,000 rejected test people, ordered by boundary "
     "disagreement. For each data set:",
     'headline.py NAME --reason "..."', lambda: headline.markdown(headline.read_results())),
    ("Groups, and margins at recourse points (Tables 8, 9, 26; Figures 6, 7, 23, 24)",
     "`faithful` has less boundary disagreement than `mixed-ptq` in each of the 14 groups, by paired intervals. By Validity Drop alone the "
     "two cannot be told apart in 9 of them, and in german's A94 that of `faithful` is the larger (.030, .010). The gap between groups is "
     "smaller than that of `mixed-ptq` but for german's age. `cf-ptq` differs from `mixed-ptq` in few groups, and is mostly worse there. "
     "On adult and compas `cfq-qat` has about half the Validity Drop of `faithful` and about its boundary disagreement: it shifts margins up, "
     "by .014 and .005 on average.",
     'subgroups.py --reason "..."', lambda: subgroups.markdown(results("subgroups"))),
    ("Layer scores (Figure 13)",
     "Scores at factual rows and at counterfactual points rank the layers alike and lead to the same widths in every network, so that the "
     "allocation by counterfactual scores is that of `mixed-ptq` here. The paper's curves peak at different layers.",
     'layer_scores.py --reason "..."', lambda: layer_scores.markdown(results("layer_scores"))),
    ("Success of recourse against its cost (Figure 9)",
     "Here `faithful` loses. Deployments that round near ties otherwise undo its choice of integers, so that recourse issued on its model "
     "holds in fewer of them than recourse on `ptq`'s model of the same cost. The robust solver buys success at the price of asking the "
     "standard solver for more confidence. `cfq-qat` is not measured yet.",
     'success_and_cost.py --reason "..."', lambda: success_and_cost.markdown(results("success_and_cost"))),
    ("Data sets and action sets (Tables 3, 4)", "Printed from the code.", "data_sets.py", lambda: data_sets.markdown(results("data_sets"))),
    ("Training-free methods on development seeds, by budget (Table 15)",
     "Made before two-sided measures and before today's defaults, on the seeds that settings were chosen with.",
     "main_tables.py", lambda: iter(main_tables.markdown(results("main_tables")).splitlines())),
    ("What `faithful` owes to what",
     "Validity Drop by activation format, by ingredient, and on other networks (german's 700 rows are too few for those).",
     "faithful.py", lambda: faithful.markdown(results("faithful"))),
    ("Training (Tables 1, 2, 5-7, 10, 11, 17, 18, 20; Figures 3-5, 8)",
     "`cfptq.qat` and its baselines; `faithful` needs no training. Other backbones and costs have three seeds. Seconds are of two or three "
     "jobs on two cores, on different days: only large ratios mean something. How much of its own recourse CFQ is trained on, and part of "
     "its other settings, were chosen with these test figures in sight.",
     "qat.py",
     training),
    ("Time", "From a model in memory to a quantized file on disk, over `torch.onnx.export` + `quantize_static`.", "overhead.py", overhead),
    ("Time of every method (Table 16)",
     "From a model in memory to a file, all methods in turns in one process, over `ptq`. The paper's variants without training cost what "
     "`ptq` costs, within the noise of a machine in use. Training costs far more than the paper's 1.42 times `ptq`.",
     "method_times.py", lambda: method_times.markdown(results("method_times"))),
    ("Files", "Bytes on disk and latency, one thread.", "deployment.py", deployment),
    ("Toolchains left to themselves", "adult, three seeds; ModelOpt only simulates, so it has no file; PyTorch's are timed uncompiled.",
     "toolchain_peers.py", toolchains),
    ("Recourse: peers", "104-64-64-2, one-hot groups, immutables, at most 3 changes.", "recourse_peers.py", peers),
    ("Recourse: optimality", "Cost over the proven optimum, 300 people each.", "recourse_optimality.py", optimality),
    ("Recourse: robust (Table 12)", "Recourse that holds in eight sampled variants of the quantized model.", "robust_recourse.py", robust),
)  # fmt: skip


def document() -> str:
    """The whole of ``benchmarks/README.md``."""
    lines = [INTRODUCTION]
    for heading, what, script, body in SECTIONS:
        lines += [f"## {heading}\n", f"{what} `python benchmarks/{script}`\n", *body(), ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Write the document, or print the headline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--headline", action="store_true", help="print the table that stands in the README")
    if parser.parse_args().headline:
        print("\n".join(headline.headline(headline.read_results())))
    else:
        write_text(HERE / "README.md", document())


if __name__ == "__main__":
    main()
