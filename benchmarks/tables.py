"""Write ``benchmarks/README.md`` from the results files.

python benchmarks/tables.py                 # writes benchmarks/README.md
python benchmarks/tables.py --headline      # prints the table that stands in the README
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import audits  # noqa: E402
import data_sets  # noqa: E402
import headline  # noqa: E402
import images  # noqa: E402
import layer_scores  # noqa: E402
import literal_steps  # noqa: E402
import method_times  # noqa: E402
import paper_index  # noqa: E402
import qat  # noqa: E402
import reporting  # noqa: E402
import rounding  # noqa: E402
import settings  # noqa: E402
import subgroups  # noqa: E402
import success_and_cost  # noqa: E402
import theory  # noqa: E402
import tightness_and_shift  # noqa: E402

from cfptq.io.atomic import write_text  # noqa: E402

INTRODUCTION = """# Benchmarks

Everything here is written by `python benchmarks/tables.py` from the files in `results/`; each section names the command that remakes its
file. Figures are mean ± standard deviation over seeds, that of a sample (divisor n − 1). German's splits are pooled: each weighs by its
people. A figure about a quantized model comes from running its file in ONNX Runtime without saturation. Times are ratios of runs that took
turns in one process. BD is boundary disagreement, VD Validity Drop, PV premature validity.
"""

#: Mark of sections that wait for the next change of the default.
BEFORE = "*Made on development seeds before `faithful` had widths of channels, and not remade yet.* "
#: The same for tables that are of the reporting seeds, or of timings.
FORMER = "*Made before `faithful` had widths of channels, and not remade yet.* "


@cache
def results(name: str) -> Any:
    """Return the content of one results file."""
    return json.loads((HERE / "results" / f"{name}.json").read_text())


def table(heads: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Yield a Markdown table."""
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield f"| {' | '.join(row)} |"


read_headline = cache(headline.read_results)


def compare_pairs(first: str, second: str) -> dict[str, list[str]]:
    """Sort data sets by the paired difference in boundary disagreement of two methods on the reporting seeds."""
    sorted_sets: dict[str, list[str]] = {"lower": [], "higher": [], "open": []}
    for name, content in read_headline().items():
        if not content.get("runs"):
            continue
        figures = {
            method: [headline.get_figure(run["methods"][method], "boundary_disagreement") for run in content["runs"]]
            for method in (content["summary"]["best"].get(first, first), content["summary"]["best"].get(second, second))
        }
        people = [float(run["methods"]["faithful"]["counts"]["with_recourse"]) for run in content["runs"]]
        difference = reporting.summarize_difference(*figures.values(), people if name in reporting.POOLED else None)
        assert difference.low is not None and difference.high is not None
        sorted_sets["lower" if difference.high < 0 else "higher" if difference.low > 0 else "open"].append(name)
    return sorted_sets


def tell_pairs(first: str, second: str) -> str:
    """Tell on which data sets the first method's boundary disagreement is lower, higher, or not told apart."""
    found = compare_pairs(first, second)
    words = {"lower": "lower on", "higher": "higher on", "open": "not told apart on"}
    return "; ".join(f"{words[kind]} {', '.join(names)}" for kind, names in found.items() if names) or "not measured yet"


def count_equal_widths(first: str, second: str) -> str:
    """Count the runs on reporting seeds in which two methods have the same widths."""
    runs = [run["methods"] for content in read_headline().values() for run in content.get("runs", ())]
    return f"{sum(run[first]['bits'] == run[second]['bits'] for run in runs)} of {len(runs)}"


def mean_of_training(name: str, method: str, metric: str, position: int = 0) -> float:
    """Return a figure of the training table that is judged by boundary disagreement: mean (0), deviation (1), largest (2)."""
    runs = [run for run in results("training")["datasets"][name]["runs"] if method in run["methods"]]
    return float(qat.summary(runs, name == "german", [method])[method][metric][position])


def findings() -> Iterator[str]:
    """Yield ten lines on what holds and what does not."""
    trained = list(results("training")["datasets"])
    each = "; ".join(
        f"{name} {mean_of_training(name, 'cfq-qat', 'boundary_disagreement'):.4f} against "
        f"{mean_of_training(name, 'faithful', 'boundary_disagreement'):.4f}"
        for name in trained
    )
    one = qat.ONE_SIDED.name
    sides = "; ".join(
        f"{name} VD {mean_of_training(name, one, 'validity_drop'):.4f} against {mean_of_training(name, 'cfq-qat', 'validity_drop'):.4f}, "
        f"BD {mean_of_training(name, one, 'boundary_disagreement'):.4f} against "
        f"{mean_of_training(name, 'cfq-qat', 'boundary_disagreement'):.4f}"
        for name in trained
    )
    is_bought = all(
        mean_of_training(name, one, "boundary_disagreement") > mean_of_training(name, "cfq-qat", "boundary_disagreement")
        for name in trained
    )
    literal_runs = "; ".join(
        f"{name} VD {mean_of_training(name, 'cfq-paper', 'validity_drop'):.3f}, "
        f"PV {mean_of_training(name, 'cfq-paper', 'premature_validity'):.2f}, "
        f"BD {mean_of_training(name, 'cfq-paper', 'boundary_disagreement'):.2f} against "
        f"{mean_of_training(name, 'cfq-paper, eta=0', 'boundary_disagreement'):.2f} with η = 0, "
        f"{100 * mean_of_training(name, 'cfq-paper', 'favourable_rate_drift'):+.1f} points of drift"
        for name in trained
    )
    yield f"1. BD of `faithful` less the best other 4-bit method (reporting seeds, paired): {tell_pairs('faithful', '4 bits')}."
    yield f"2. BD of `faithful` at 4 bits less the best 8-bit toolchain: {tell_pairs('faithful', '8 bits')}."
    yield (
        "3. Calibrating on counterfactual points (`cf-ptq-calibration` less `mixed-ptq`, BD): "
        f"{tell_pairs('cf-ptq-calibration', 'mixed-ptq')}."
    )
    yield (
        "4. Allocating by counterfactual sensitivity (eqs. 23, 24) gives the widths of factual sensitivity in "
        f"{count_equal_widths('cf-ptq-allocation', 'mixed-ptq')} runs."
    )
    yield f"5. Training (`cfq-qat`) against `faithful`, BD on development seeds, both before `faithful` had widths of channels: {each}."
    yield (
        f"6. The paper's objective without our guard on drift (`cfq-paper`, development seeds) lowers VD by accepting people too early: "
        f"{literal_runs}. Earlier tables showed the untrained start in most of these rows."
    )
    bought = " Its lower VD is bought with premature validity." if is_bought else ""
    yield f"7. `cfq-qat` with one teacher and points on one side, against both sides: {sides}.{bought}"
    shares = results("literal_steps")["steps"]["bank"]
    yield (
        "8. Literal steps of eq. 6 depend on a step size that the paper does not give: on bank three of them take a share of "
        f"{shares['K=3, α=0.3, literal']:.2f} of people to the target at α = 0.3 and {shares['K=3, α=1, literal']:.2f} at α = 1. "
        "`cf-ptq` has about the same BD with either."
    )
    yield '9. Small networks at batch 1 are fastest in float32 ("Files").'
    counts = {state: sum(exhibit.state == state for exhibit in paper_index.EXHIBITS) for state in (paper_index.OPEN, paper_index.PARTLY)}
    yield (
        f"10. Of the paper's 56 tables and figures {counts[paper_index.OPEN]} are not reproduced yet and {counts[paper_index.PARTLY]} in "
        "part: tightness, distribution shift and images among the latter."
    )


def overhead() -> Iterator[str]:
    """Yield the times over export and ``quantize_static``, their shares, and latency by input."""
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
    """Yield bytes and latency of files."""
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
    """Yield the table of every toolchain's own quantization beside ours."""
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


def literal() -> Iterator[str]:
    """Eq. 6 to the letter."""
    yield from literal_steps.markdown(results("literal_steps"))


def free() -> Iterator[str]:
    """Training-free methods on the reporting seeds, and the paper's figures."""
    yield from headline.markdown({name: content for name, content in read_headline().items() if content.get("runs")})
    yield "\nThe paper's Tables 13 and 14\n"
    yield from headline.paper_figures()


def judged_training() -> Iterator[str]:
    """Training without the drift guard, judged by boundary disagreement."""
    yield from qat.judged(results("training"))
    unmeasured = qat.list_unmeasured(results("training"), results("qat"))
    if unmeasured:
        yield f"\nDefined in the script and not measured yet: {'; '.join(unmeasured)}."


def training() -> Iterator[str]:
    """Methods that train, and their plots."""
    yield "![Validity Drop and CRG against average bits](results/qat_curves.svg)\n"
    yield "![Widths of layers](results/qat_bits.svg)"
    yield from qat.markdown(results("qat"))


#: Heading, what it measures, the command, and the lines below.
SECTIONS: tuple[tuple[str, str, str, Callable[[], Iterator[str]]], ...] = (
    ("Data sets and action sets (Tables 3, 4)", "Printed from the code.", "data_sets.py", lambda: data_sets.markdown(results("data_sets"))),
    ("Eq. 6 to the letter", "What the deviations in steps change, on development seeds.", "literal_steps.py", literal),
    ("Training-free methods on the reporting seeds (Tables 13, 14, 15)",
     "MLP 64-64, 4 average bits, the same 1,024 calibration rows for every method, up to 2,000 rejected test people, ordered by boundary "
     "disagreement. Ten reporting seeds; german has sixty splits, pooled. For each data set:",
     'headline.py NAME --reason "..."', free),
    ("What each part of `faithful` is worth",
     "The first five reporting seeds (german: twenty splits), 4 average bits. The parts that lower boundary disagreement beyond the "
     "interval "
     "are those whose interval lies above 1. Leaving out minimal-cost points lowers it, and raises Validity Drop at a confidence of 0.55. "
     "Ranges by margins and the second sweep do not pay by these figures; the first keeps outliers from setting ranges, and the second "
     "was chosen for the drift of compas.",
     'rounding.py --reason "..."', lambda: rounding.markdown(results("rounding"))),
    ("Groups, and margins at recourse points (Tables 8, 9, 26; Figures 6, 7, 23, 24)",
     "`faithful` has less boundary disagreement than `mixed-ptq` in each of the 14 groups of at least 100 people, by paired intervals. By "
     "Validity Drop alone the two cannot be told apart in 5 of them. The gap between groups is smaller than that of `mixed-ptq` but for "
     "german's age. `cf-ptq` differs from `mixed-ptq` in few groups, and is mostly worse there. *german's age, its margins, and `cfq-qat` "
     "were measured before `faithful` had widths of channels.*",
     'subgroups.py --reason "..."', lambda: subgroups.markdown(results("subgroups"))),
    ("Layer scores (Figure 13)",
     "Scores at factual rows and at counterfactual points rank the layers alike and lead to the same widths in every network, so that the "
     "allocation by counterfactual scores is that of `mixed-ptq` here. The paper's curves peak at different layers.",
     'layer_scores.py --reason "..."', lambda: layer_scores.markdown(results("layer_scores"))),
    ("Success of recourse against its cost (Figure 9)",
     "Recourse that ends on the boundary itself (a probability of 0.5) holds in fewer variants of `faithful` than of `ptq`. From 0.525 on "
     "it holds in more of them, at the same cost: 0.84 against 0.77 there, and 0.96 against 0.89 at 0.55. `cfq-qat` lies between them up "
     "to 0.575. The robust solver on `ptq` buys success at about the price of asking the standard solver for more confidence.",
     'success_and_cost.py --reason "..."', lambda: success_and_cost.markdown(results("success_and_cost"))),
    ("Theory: estimates, bounds and proofs against failures (Sections 5, L)",
     "Everybody who fails is at risk by measured ε, which follows from Proposition 5.1, because the centre is among the points measured. "
     "The first-order estimate flags fewer people in most rows and misses nobody who fails here, though it is no bound. The layerwise "
     "bound is 15 to 460 times the measured ε, so that it vouches for nobody outside german. It is of use for its shares alone. "
     "Proofs by linear relaxation miss at most 6 points of the people whose recourse holds at the point. Within the ball they cover more "
     "people for `faithful` than for `ptq` in every row. The share that is proven on the full-precision network is beside it.",
     "theory.py", lambda: theory.markdown(results("theory"))),
    ("Tightness of the action set, and distribution shift (Tables 24, 25; Figures 18 to 22)",
     "Two development networks, without trained CFQ. Tight action sets break more recourse, as in the paper. Everybody has recourse even "
     "under the tightest one here, in contrast to the paper's 72 %. Shifts change little for either method: no shift raises boundary "
     "disagreement of `mixed-ptq` above .056, from .052. The differences between rows of `faithful` are a few people.",
     "tightness_and_shift.py", lambda: tightness_and_shift.markdown(results("tightness_and_shift"))),
    ("Images and attributes (Tables 27, 29, 30, 31)",
     "On development seed 0 alone; the script has reporting seeds of its own, which are not run yet. Other budgets are of MNIST alone. "
     "Actions move the code of an autoencoder, or edit attributes of CelebA's table, whose images were not read. On MNIST `faithful` "
     "drops channels without effect on the calibration rows and uses 3.26 of 4 bits, because no other channel gains from more. Not "
     "measured: QAT, pruning and distillation, and ResNet-18.",
     "images.py --seeds 0", lambda: images.markdown(results("images"))),
    ("Budgets, formats, widths, range and networks",
     "The first three reporting seeds, german ten splits, pooled; widths on development seeds. Hidden tensors have 8 bits where nothing "
     "else is said, and networks of the last table are trained anew.",
     'settings.py --parts budgets formats widths range networks --reason "..."', lambda: settings.markdown(results("settings"))),
    ("Training by boundary disagreement",
     BEFORE + "Rows of the paper run without our guard on drift, ours with it. \"kept\" is the epoch that was "
     "kept, from 0, by seed; -1 is the untrained start. `cfq-paper` has K = 3 steps of eq. 6 to the letter.",
     "qat.py --tables paper --out benchmarks/results/training.json", judged_training),
    ("Training",
     BEFORE + "Tables 1, 5-7, 10, 11, 20; Figures 3-5, 8. `cfptq.qat` and its baselines; `faithful` needs no training. Other "
     "backbones and costs have three seeds. Seconds are of two or three "
     "jobs on two cores, on different days: only large ratios mean something. How much of its own recourse CFQ is trained on, and part of "
     "its other settings, were chosen with these test figures in sight.",
     "qat.py",
     training),
    ("Time", FORMER + "From a model in memory to a quantized file on disk, over `torch.onnx.export` + `quantize_static`.",
     "overhead.py", overhead),
    ("Time of every method (Table 16)",
     FORMER + "From a model in memory to a file, all methods in turns in one process, over `ptq`. The paper's variants without "
     "training cost what "
     "`ptq` costs, within the noise of a machine in use. Training costs far more than the paper's 1.42 times `ptq`.",
     "method_times.py", lambda: method_times.markdown(results("method_times"))),
    ("Files", FORMER + "Bytes on disk and latency, one thread.", "deployment.py", deployment),
    ("Audits of other tools' files, with letters",
     "Development networks, `cfptq audit` as an analyst runs it, letters sent at a probability of 0.55 to up to 2,000 refused "
     "people. The last table asks the exact solver whether the audit's search found what there is: every "
     "finding that there is recourse is confirmed.",
     "audits.py", lambda: audits.markdown(results("audits"))),
    ("Toolchains left to themselves",
     BEFORE + "adult, three seeds; ModelOpt only simulates, so it has no file; PyTorch's are timed uncompiled.",
     "toolchain_peers.py", toolchains),
    ("Recourse: peers", "104-64-64-2, one-hot groups, immutables, at most 3 changes.", "recourse_peers.py", peers),
    ("Recourse: optimality", "Cost over the proven optimum, 300 people each.", "recourse_optimality.py", optimality),
    ("Recourse: robust (Table 12)",
     BEFORE + "Recourse that holds in eight sampled variants of the quantized model. These figures are of fake-quantized modules; by now "
     "the script runs files.", "robust_recourse.py", robust),
)  # fmt: skip


def document() -> str:
    """Return the whole of ``benchmarks/README.md``."""
    lines = [INTRODUCTION, "## What holds, and what does not\n", *findings(), ""]
    lines += ["## The paper's tables and figures\n", *paper_index.index(), ""]
    lines += ["## Deviations from the paper\n", *paper_index.deviations(), ""]
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
