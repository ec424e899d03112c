"""The ``cfptq`` command, whose subcommands read files, call the package and write files.

Slow imports happen inside the subcommands, so that help is fast. The exit code is 0 on success, 1 if a limit of an audit is broken, 2 if
the command could not run, and 130 if it was interrupted.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Annotated, NoReturn, ParamSpec

import typer

from cfptq import __version__
from cfptq.cli.image_files import holds_images
from cfptq.cli.inputs import as_audited, as_pins, get_column, read_action_set, read_images, read_loader, read_module
from cfptq.cli.outputs import (
    ReportFormat,
    say,
    show_audit,
    show_comparison,
    show_quickstart,
    show_result,
    write_audit_files,
    write_model_and_plan,
)
from cfptq.cli.table_files import TableFormat, load_table, read_table
from cfptq.errors import CfptqError, ConfigurationError
from cfptq.io.atomic import check_writable, make_folder
from cfptq.io.files import compute_file_sha256, describe_os_error
from cfptq.io.printable import escape_unprintable

P = ParamSpec("P")

#: Exit codes.
BROKEN, COULD_NOT_RUN, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    help="Quantize a classifier without breaking the recourse that people were promised.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelOption = Annotated[
    str, typer.Option("--model", help="The model, an ONNX file or 'package.module:function' that builds it.", metavar="MODEL")
]
StateOption = Annotated[Path | None, typer.Option("--state", help="Its trained state, a .safetensors file.")]
ActionsOption = Annotated[Path, typer.Option("--action-set", help="YAML file written by the save of an action set, encoding included.")]
LabelOption = Annotated[str | None, typer.Option("--label", help="Column with the true class (0, 1, ...).")]
TargetOption = Annotated[
    int | None, typer.Option("--target", help="Class that recourse leads to. By default the action set's favourable class.")
]
HeadOption = Annotated[
    str | None, typer.Option("--head", help="Form of the model's output: logits, logit, probability, probabilities. Inferred by default.")
]
ThresholdOption = Annotated[
    float | None, typer.Option("--threshold", help="Probability of class 1 above which a two-class model decides it.")
]
OutputOption = Annotated[
    str | None, typer.Option("--output", help="Output with the class scores, where an ONNX file has several.", metavar="NAME")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of every random choice.")]
RowsOption = Annotated[int, typer.Option("--max-rows", help="Calibration rows kept, drawn evenly from the file.")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for the results, made if it is missing.")]


def report_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turn a ``CfptqError`` and an interruption into one line on standard error and their exit codes.

    An unexpected error ends with exit code 2 too. A pipeline would read 1 as a broken limit.
    """

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except CfptqError as error:
            typer.echo(f"cfptq: {escape_unprintable(' '.join(str(error).split()))}", err=True)
            raise typer.Exit(COULD_NOT_RUN) from None
        except OSError as error:
            named = f" {error.filename}" if error.filename else ""
            message = f"This process cannot read or write{named}: {describe_os_error(error)}."
            typer.echo(f"cfptq: {escape_unprintable(message)}", err=True)
            raise typer.Exit(COULD_NOT_RUN) from None
        except KeyboardInterrupt:
            _end_interrupted()
        except typer.Exit:
            raise
        except Exception as error:
            if _comes_from_interruption(error):
                _end_interrupted()
            traceback.print_exc()
            raise typer.Exit(COULD_NOT_RUN) from None

    return run


def _end_interrupted() -> NoReturn:
    typer.echo("cfptq: interrupted.", err=True)
    raise typer.Exit(INTERRUPTED) from None


def _comes_from_interruption(error: BaseException | None) -> bool:
    """Tell whether a library raised ``error`` in place of a ``KeyboardInterrupt``."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Hold the options that stand before a subcommand."""


@app.command()
@report_errors
def quickstart(out: OutOption = Path("cfptq-quickstart")) -> None:
    """Show cfptq at work on generated people. It needs no data and no network."""
    from cfptq.experiments import run_quickstart

    show_quickstart(run_quickstart(out))


@app.command()
@report_errors
def run(
    recipe: Annotated[Path, typer.Argument(help="Experiment file, such as recipes/adult.yaml.")],
    out: OutOption,
    seed: Annotated[
        list[int] | None, typer.Option("--seed", help="Run this seed only. May be repeated. The recipe's seeds by default.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="Folder of data sets. CFPTQ_DATA_DIR by default.")] = None,
    train: Annotated[bool, typer.Option("--train", help="Train every network, although the recipe names stored ones.")] = False,
) -> None:
    """Run an experiment file, which reads or trains a network, quantizes it by each method and measures recourse.

    Several seeds write into a folder each, seed-0, seed-1 and so on.
    """
    from cfptq.experiments import run_recipe

    run_recipe(recipe, out, seeds=seed or None, data_dir=data_dir, train=train, on_result=show_comparison)


@app.command()
@report_errors
def calibrate(
    model: ModelOption,
    data: Annotated[Path, typer.Option("--data", help="Calibration rows as raw features, CSV or Parquet.")],
    action_set: ActionsOption,
    out: Annotated[Path, typer.Option("--out", help="ONNX file to write.")],
    state: StateOption = None,
    label: LabelOption = None,
    method: Annotated[
        str, typer.Option("--method", help="faithful, cf-ptq, cf-ptq-calibration, cf-ptq-allocation, mixed-ptq, ptq.")
    ] = "faithful",
    budget: Annotated[float | None, typer.Option("--budget", help="Average bits per weight. 4 where no limit is given.")] = None,
    max_validity_drop: Annotated[
        float | None,
        typer.Option("--max-validity-drop", help="Instead of a budget, the fewest bits whose Validity Drop is at most this share."),
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option("--layer", help="Pin a layer, as NAME=BITS. May be repeated.", metavar="NAME=BITS")
    ] = None,
    target: TargetOption = None,
    head: HeadOption = None,
    threshold: ThresholdOption = None,
    output: OutputOption = None,
    portable: Annotated[
        bool,
        typer.Option("--portable/--full-range", help="Weights within ±63, which are right on every processor, or full-range int8 weights."),
    ] = True,
    repair: Annotated[
        bool, typer.Option("--repair", help="At the end, adjust the last layer where that saves recourse of held-out people too.")
    ] = False,
    groups: Annotated[
        str | None, typer.Option("--groups", help="Feature of the action set whose worst-off group gets higher weights.")
    ] = None,
    reserve: Annotated[
        float | None,
        typer.Option("--reserve", help="Margin added to accepted rows, as a share of the median margin. Its price in drift is printed."),
    ] = None,
    pareto: Annotated[
        Path | None, typer.Option("--pareto", help="Draw boundary disagreement against average bits to this .svg, .png or .pdf file.")
    ] = None,
    max_rows: RowsOption = 4096,
    seed: SeedOption = 0,
    save: Annotated[
        Path | None, typer.Option("--save", help="Folder to keep the plan in, which cfptq.load reads. It holds no calibration rows.")
    ] = None,
) -> None:
    """Quantize a model to a mixed int8/int4 ONNX file."""
    from cfptq import api
    from cfptq.pipeline.pareto import choose_plot_format
    from cfptq.pipeline.saving import check_save_folder

    check_writable(out, pareto, save)
    if pareto is not None:
        choose_plot_format(pareto)
    if save is not None:
        check_save_folder(save)
    module = read_module(model, state, output)
    actions = read_action_set(action_set)
    result = api.calibrate(
        module,
        read_loader(data, actions, label),
        actions,
        target=target,
        budget=budget,
        max_validity_drop=max_validity_drop,
        method=method,
        layers=as_pins(layer or []),
        portable=portable,
        repair=repair,
        groups=groups,
        reserve=reserve,
        head=head,
        threshold=threshold,
        max_rows=max_rows,
        seed=seed,
    )
    write_model_and_plan(result, out, save, pareto)
    show_result(result, out)


@app.command()
@report_errors
def qat(
    model: ModelOption,
    data: Annotated[Path, typer.Option("--data", help="Training rows as raw features, CSV or Parquet.")],
    action_set: ActionsOption,
    out: Annotated[Path, typer.Option("--out", help="ONNX file to write.")],
    state: StateOption = None,
    label: LabelOption = None,
    method: Annotated[str, typer.Option("--method", help="cfq-qat, or another preset of cfptq.training.QAT_METHODS.")] = "cfq-qat",
    budget: Annotated[float, typer.Option("--budget", help="Average bits per weight.")] = 4.0,
    layer: Annotated[
        list[str] | None, typer.Option("--layer", help="Pin a layer, as NAME=BITS. May be repeated.", metavar="NAME=BITS")
    ] = None,
    target: TargetOption = None,
    head: HeadOption = None,
    threshold: ThresholdOption = None,
    output: OutputOption = None,
    portable: Annotated[
        bool,
        typer.Option("--portable/--full-range", help="Weights within ±63, which are right on every processor, or full-range int8 weights."),
    ] = True,
    max_rows: Annotated[
        int | None, typer.Option("--max-rows", help="Training rows kept, drawn evenly from the file. All by default.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="File replaced after every epoch, from which the same command resumes.")
    ] = None,
    log: Annotated[Path | None, typer.Option("--log", help="CSV file with one line an epoch.")] = None,
    seed: SeedOption = 0,
    save: Annotated[
        Path | None, typer.Option("--save", help="Folder to keep the plan in, which cfptq.load reads. It holds no training rows.")
    ] = None,
) -> None:
    """Quantize a model by training, to a mixed int8/int4 ONNX file.

    It takes minutes where calibrate takes seconds.
    """
    from cfptq import api
    from cfptq.pipeline.saving import check_save_folder

    check_writable(out, save, checkpoint, log)
    if save is not None:
        check_save_folder(save)
    module = read_module(model, state, output)
    actions = read_action_set(action_set)
    loader = read_loader(data, actions, label)
    rows = loader[0] if label is None else loader[0][0]
    result = api.qat(
        module,
        loader,
        actions,
        target=target,
        budget=budget,
        method=method,
        layers=as_pins(layer or []),
        portable=portable,
        head=head,
        threshold=threshold,
        max_rows=max_rows or len(rows),
        checkpoint=checkpoint,
        log=log,
        seed=seed,
    )
    write_model_and_plan(result, out, save)
    show_result(result, out)


@app.command()
@report_errors
def compare(
    model: ModelOption,
    data: Annotated[Path, typer.Option("--data", help="Calibration rows as raw features, CSV or Parquet.")],
    test: Annotated[Path, typer.Option("--test", help="People to judge by, as raw features, CSV or Parquet.")],
    action_set: ActionsOption,
    out: OutOption,
    state: StateOption = None,
    label: LabelOption = None,
    method: Annotated[list[str] | None, typer.Option("--method", help="A method to compare. May be repeated. All by default.")] = None,
    budget: Annotated[list[float] | None, typer.Option("--budget", help="Average bits per weight. May be repeated. 4 by default.")] = None,
    group: Annotated[
        list[str] | None, typer.Option("--group", help="Column of the test rows to report by subgroup. May be repeated.")
    ] = None,
    target: TargetOption = None,
    head: HeadOption = None,
    threshold: ThresholdOption = None,
    output: OutputOption = None,
    max_rows: RowsOption = 4096,
    seed: SeedOption = 0,
) -> None:
    """Compare methods of quantization by people's recourse, and write their files and results.json."""
    from cfptq import api

    module = read_module(model, state, output)
    actions = read_action_set(action_set)
    people = None if holds_images(test) else read_table(test)
    if people is None and group:
        raise ConfigurationError("--group names a column of a table, and the test rows are images. Leave --group out.")
    comparison = api.compare(
        module,
        read_loader(data, actions, label, may_lack_label=True),
        read_loader(test, actions, label),
        actions,
        methods=tuple(method) if method else api.COMPARED,
        budgets=tuple(budget or (4.0,)),
        target=target,
        groups=None if people is None else {name: get_column(people, name, test).tolist() for name in group or []} or None,
        head=head,
        threshold=threshold,
        max_rows=max_rows,
        seed=seed,
        dataset=test.stem,
        keep=make_folder(out),
    )
    comparison.to_json(out / "results.json")
    comparison.timings_to_json(out / "timings.json")
    show_comparison(out, comparison)


@app.command()
@report_errors
def audit(
    before: Annotated[str, typer.Argument(help="The model that recourse was issued on, an ONNX file or 'package.module:function'.")],
    after: Annotated[list[str], typer.Argument(help="The model that is deployed, likewise. Several are each compared with the first.")],
    people: Annotated[
        Path,
        typer.Option("--people", help="Everyone, as raw features, CSV or Parquet, or as images, .npz or a folder."),
    ],
    action_set: ActionsOption,
    issued: Annotated[
        Path | None,
        typer.Option("--issued", help="Letters already sent, with what people were told to reach. Empty cells stay as they are."),
    ] = None,
    id: Annotated[str | None, typer.Option("--id", help="Column that identifies people in both tables.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse every table that the report would have a remark on.")] = False,
    sep: Annotated[str | None, typer.Option("--sep", help="Separator of CSV files. Detected by default.")] = None,
    decimal: Annotated[str | None, typer.Option("--decimal", help="Decimal mark of CSV files. Detected by default.")] = None,
    thousands: Annotated[str | None, typer.Option("--thousands", help="Thousands mark of CSV files. Detected by default.")] = None,
    encoding: Annotated[str | None, typer.Option("--encoding", help="Encoding of CSV files. UTF-8 by default.")] = None,
    group: Annotated[list[str] | None, typer.Option("--group", help="Column to report by subgroup. May be repeated.")] = None,
    label: LabelOption = None,
    target: TargetOption = None,
    head: HeadOption = None,
    threshold: ThresholdOption = None,
    output: OutputOption = None,
    max_vd: Annotated[float | None, typer.Option("--max-vd", help="Largest Validity Drop allowed, a share such as 0.02.")] = None,
    max_disagreement: Annotated[
        float | None, typer.Option("--max-disagreement", help="Largest boundary disagreement allowed, a share such as 0.02.")
    ] = None,
    max_crg: Annotated[float | None, typer.Option("--max-crg", help="Largest recourse gap allowed, a share.")] = None,
    max_drift: Annotated[float | None, typer.Option("--max-drift", help="Largest drift of the favourable rate allowed, a share.")] = None,
    max_group_gap: Annotated[
        float | None, typer.Option("--max-group-gap", help="Largest gap between groups allowed, a share. Needs --group.")
    ] = None,
    level: Annotated[
        float | None, typer.Option("--level", help="Judge the farther ends of intervals at this level, such as 0.95, not the estimates.")
    ] = None,
    prove_within: Annotated[
        float | None,
        typer.Option("--prove-within", help="Also estimate and prove that recourse holds for every deviation up to this radius."),
    ] = None,
    form: Annotated[ReportFormat, typer.Option("--format", help="Form of the report on standard output.")] = ReportFormat.TEXT,
    json: Annotated[Path | None, typer.Option("--json", help="Write the report to this file.")] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write the outcome of each limit as JUnit XML.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write a row for each person affected. These are personal data.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write the report as one HTML file. Needs cfptq[report].")] = None,
    plots: Annotated[Path | None, typer.Option("--plots", help="Folder to write the plots to as SVG, made if it is missing.")] = None,
    include_people: Annotated[
        bool, typer.Option("--include-people", help="Show each person affected, keys, and groups of any size, in all forms of the report.")
    ] = False,
    state: Annotated[
        Path | None, typer.Option("--state", help=".safetensors state of the first model, where a function builds it.")
    ] = None,
    state_after: Annotated[Path | None, typer.Option("--state-after", help="The same for the second model.")] = None,
    seed: SeedOption = 0,
) -> None:
    """Report and judge what replacing one model by another does to recourse.

    The exit code is 0 if every limit held, 1 if one is broken, and 2 if the audit could not run or a limit could not be judged.
    """
    from cfptq import api
    from cfptq.auditing import Protocol
    from cfptq.auditing.gate import check_limits

    check_writable(json, junit, csv, html)
    limits = {
        "max_vd": max_vd,
        "max_drift": max_drift,
        "max_disagreement": max_disagreement,
        "max_crg": max_crg,
        "max_group_gap": max_group_gap,
    }
    check_limits(list(limits.items()), level)
    if max_group_gap is not None and not group:
        raise ConfigurationError("--max-group-gap needs groups, and none were given. Give --group.")
    if state_after is not None and len(after) > 1:
        raise ConfigurationError(f"--state-after needs one second model, got {len(after)}. Audit them one by one.")
    actions = read_action_set(action_set)
    dialect = TableFormat(sep, decimal, thousands, encoding)
    images = read_images(people, actions, label) if holds_images(people) else None
    if images is not None and (issued is not None or id is not None or group):
        raise ConfigurationError("--issued, --id and --group need a table of people, and the people are images. Leave them out.")
    paths = [path for path in (people, issued) if path is not None and images is None]
    tables = [load_table(path, dialect, text=id) for path in paths]
    readings = tuple(f"Read {read.reading}" for read in (*tables, *(() if images is None else (images,))) if read.reading)
    files = [path for path in (people, issued) if path is not None and not path.is_dir()]
    digests = {f"File {path.name}": compute_file_sha256(path) for path in (*files, action_set)}
    judged = []
    for model in after:
        report = api.audit(
            as_audited(before, state),
            as_audited(model, state_after),
            tables[0].frame if images is None else images.rows,
            actions,
            issued=None if issued is None else tables[1].frame,
            id=id,
            strict=strict,
            groups=tuple(group or ()),
            label=label if images is None else images.labels,
            target=target,
            head=head,
            threshold=threshold,
            output=output,
            protocol=Protocol() if level is None else Protocol(level=level),
            prove_within=prove_within,
            seed=seed,
        )
        report = replace(report, readings=readings, digests={**report.digests, **digests})
        judged.append((report, report.gate(**limits, level=level)))
    write_audit_files(judged, json=json, junit=junit, csv=csv, html=html, plots=plots, include_people=include_people)
    show_audit(judged, form, include_people)
    outcomes = {gate.outcome for _, gate in judged}
    if "broken" in outcomes:
        raise typer.Exit(BROKEN)
    if "not judged" in outcomes:
        raise typer.Exit(COULD_NOT_RUN)


@app.command()
@report_errors
def datasets(
    names: Annotated[list[str] | None, typer.Argument(help="Names of data sets. All by default.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Download what is missing into the cache.")] = False,
) -> None:
    """Show the paths of the public data sets on this machine, and download them."""
    from cfptq import datasets as library

    lines = []
    for name in names or library.NAMES:
        if download:
            library.download(name)
        places = library.locate(name)
        lines += [(name, file, "missing" if place is None else str(place)) for file, place in places.items()]
        if not places:
            lines.append((name, "–", "generated by cfptq"))
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    say(*(f"{name:<{widths[0]}}  {file:<{widths[1]}}  {place}" for name, file, place in lines))
    say(
        f"Searched: {', then '.join(str(folder) for folder in library.list_search_folders())}.",
        "Point CFPTQ_DATA_DIR at a folder that holds <data set>/<file>, or add --download.",
    )
