"""The ``cfptq`` command. Each command reads files, calls :mod:`cfptq.api`, and writes files; heavy imports happen inside it.

Exit codes: 0 done (audit: every limit held), 1 a limit of the audit is broken, 2 it could not run.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from cfptq import __version__
from cfptq.cli.inputs import as_audited, as_loader, as_pins, column_of, made_folder, read_action_set, read_module, read_table
from cfptq.cli.outputs import finish, say, show, show_layers
from cfptq.errors import CfptqError
from cfptq.experiments.run import compared, file_of, one_promise, write_audit_inputs
from cfptq.io.atomic import check_writable

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
    str, typer.Option("--model", help="The model: 'package.module:function' that builds it, or an ONNX file.", metavar="MODEL")
]
StateOption = Annotated[Path | None, typer.Option("--state", help="Its trained state, a .safetensors file.")]
ActionsOption = Annotated[Path, typer.Option("--action-set", help="YAML file written by ActionSet.save, encoding included.")]
LabelOption = Annotated[str | None, typer.Option("--label", help="Column with the true class (0, 1, ...).")]
TargetOption = Annotated[
    int | None, typer.Option("--target", help="Class that recourse leads to; by default the action set's favourable class.")
]
HeadOption = Annotated[
    str | None, typer.Option("--head", help="What the model puts out: logits, logit, probability, probabilities. Inferred by default.")
]
ThresholdOption = Annotated[
    float | None, typer.Option("--threshold", help="Probability of class 1 above which a two-class model decides it.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Fixes every random choice.")]
RowsOption = Annotated[int, typer.Option("--max-rows", help="Calibration rows kept, drawn evenly from the file.")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for the results; made if it is not there.")]


def reported(command: Callable[P, None]) -> Callable[P, None]:
    """Turn a :class:`CfptqError` into one line on standard error, and anything unforeseen into exit code 2 as well.

    An unforeseen error must not end with 1, which a pipeline reads as "a limit is broken".
    """

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except CfptqError as error:
            typer.echo(f"cfptq: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(COULD_NOT_RUN) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except typer.Exit:
            raise
        except Exception:
            traceback.print_exc()
            raise typer.Exit(COULD_NOT_RUN) from None

    return run


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
    """Options that stand before a command."""


@app.command()
@reported
def quickstart(out: OutOption = Path("cfptq-quickstart")) -> None:
    """See it work, on generated people: no data and no network needed."""
    from cfptq.experiments.recipe import quickstart as recipe_of_quickstart

    recipe = recipe_of_quickstart()
    experiment = recipe.prepare(recipe.seeds[0])
    say(f"Data set: {experiment.dataset.source}.")
    finish(compared(recipe, experiment, made_folder(out)), out)
    write_audit_inputs(experiment, out)
    say(*one_promise(experiment, out))
    say(
        "Next, judge a file as an auditor would:",
        f"  cfptq audit {out}/fp32.onnx {file_of(out, 'faithful')} --people {out}/people.csv --action-set {out}/actions.yaml \\",
        "    --label label --group sex --max-vd 0.2",
    )


@app.command()
@reported
def run(
    recipe: Annotated[Path, typer.Argument(help="Experiment file, such as recipes/adult.yaml.")],
    out: OutOption,
    seed: Annotated[
        list[int] | None, typer.Option("--seed", help="Run this seed only. May be repeated; the recipe's seeds by default.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="Folder of data sets; by default CFPTQ_DATA_DIR.")] = None,
) -> None:
    """Run an experiment file: train, quantize by every method, and measure.

    Several seeds: one folder each, seed-0, seed-1, ...
    """
    from cfptq.experiments.recipe import Recipe

    experiment_file = Recipe.load(recipe)
    seeds = tuple(dict.fromkeys(seed or experiment_file.seeds))
    for each in seeds:
        folder = made_folder(out if len(seeds) == 1 else out / f"seed-{each}")
        finish(compared(experiment_file, experiment_file.prepare(each, data_dir=data_dir), folder), folder)


@app.command()
@reported
def calibrate(
    model: ModelOption,
    data: Annotated[Path, typer.Option("--data", help="Calibration rows: raw features, CSV or Parquet.")],
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
        typer.Option("--max-validity-drop", help="Instead of a budget: the fewest bits whose Validity Drop is at most this share."),
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option("--layer", help="Pin a layer, as NAME=BITS. May be repeated.", metavar="NAME=BITS")
    ] = None,
    target: TargetOption = None,
    head: HeadOption = None,
    threshold: ThresholdOption = None,
    portable: Annotated[
        bool, typer.Option("--portable/--full-range", help="Weights within ±63, right on every processor; or full-range int8 weights.")
    ] = True,
    repair: Annotated[
        bool, typer.Option("--repair", help="At the end, adjust the last layer where that saves recourse, people set aside agreeing.")
    ] = False,
    groups: Annotated[
        str | None, typer.Option("--groups", help="Feature of the action set: weigh rows so that its worst-off group keeps more recourse.")
    ] = None,
    pareto: Annotated[
        Path | None, typer.Option("--pareto", help="Draw Validity Drop against average bits to this .svg, .png or .pdf file.")
    ] = None,
    max_rows: RowsOption = 4096,
    seed: SeedOption = 0,
    save: Annotated[
        Path | None, typer.Option("--save", help="Folder to keep the plan in; cfptq.load reads it. Holds no calibration rows.")
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
    module = read_module(model, state)
    actions = read_action_set(action_set)
    rows = read_table(data)
    if label is not None:
        column_of(rows, label, data)
    result = api.calibrate(
        module,
        as_loader(rows, actions, label),
        actions,
        target=target,
        budget=budget,
        max_validity_drop=max_validity_drop,
        method=method,
        layers=as_pins(layer or []),
        portable=portable,
        repair=repair,
        groups=groups,
        head=head,
        threshold=threshold,
        max_rows=max_rows,
        seed=seed,
    )
    if pareto is not None:
        result.pareto().plot(pareto)
    result.to_onnx(out)
    if save is not None:
        result.save(save, rows=False)
    show_layers(result, out)


@app.command()
@reported
def qat(
    model: ModelOption,
    data: Annotated[Path, typer.Option("--data", help="Training rows: raw features, CSV or Parquet.")],
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
    portable: Annotated[
        bool, typer.Option("--portable/--full-range", help="Weights within ±63, right on every processor; or full-range int8 weights.")
    ] = True,
    max_rows: Annotated[
        int | None, typer.Option("--max-rows", help="Training rows kept, drawn evenly from the file; all by default.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="File kept up to date after every epoch; the same command goes on from it.")
    ] = None,
    log: Annotated[Path | None, typer.Option("--log", help="CSV file, one line an epoch.")] = None,
    seed: SeedOption = 0,
    save: Annotated[
        Path | None, typer.Option("--save", help="Folder to keep the plan in; cfptq.load reads it. Holds no training rows.")
    ] = None,
) -> None:
    """Quantize a model by training, to a mixed int8/int4 ONNX file. Takes minutes where calibrate takes seconds."""
    from cfptq import api
    from cfptq.pipeline.saving import check_save_folder

    check_writable(out, save, checkpoint, log)
    if save is not None:
        check_save_folder(save)
    module = read_module(model, state)
    actions = read_action_set(action_set)
    rows = read_table(data)
    if label is not None:
        column_of(rows, label, data)
    result = api.qat(
        module,
        as_loader(rows, actions, label),
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
    result.to_onnx(out)
    if save is not None:
        result.save(save, rows=False)
    show_layers(result, out)


@app.command()
@reported
def compare(
    model: ModelOption,
    data: Annotated[Path, typer.Option("--data", help="Calibration rows: raw features, CSV or Parquet.")],
    test: Annotated[Path, typer.Option("--test", help="People to judge by: raw features, CSV or Parquet.")],
    action_set: ActionsOption,
    out: OutOption,
    state: StateOption = None,
    label: LabelOption = None,
    method: Annotated[list[str] | None, typer.Option("--method", help="A method to compare. May be repeated; all by default.")] = None,
    budget: Annotated[list[float] | None, typer.Option("--budget", help="Average bits per weight. May be repeated; 4 by default.")] = None,
    group: Annotated[
        list[str] | None, typer.Option("--group", help="Column of the test rows to report by subgroup. May be repeated.")
    ] = None,
    target: TargetOption = None,
    head: HeadOption = None,
    threshold: ThresholdOption = None,
    max_rows: RowsOption = 4096,
    seed: SeedOption = 0,
) -> None:
    """Measure what each way to quantize a model does to people's recourse; write the files it made and results.json."""
    from cfptq import api

    module = read_module(model, state)
    actions = read_action_set(action_set)
    rows, people = read_table(data), read_table(test)
    if label is not None:
        column_of(people, label, test)
    comparison = api.compare(
        module,
        as_loader(rows, actions, label if label in rows.columns else None),
        as_loader(people, actions, label),
        actions,
        methods=tuple(method) if method else api.COMPARED,
        budgets=tuple(budget or (4.0,)),
        target=target,
        groups={name: column_of(people, name, test).tolist() for name in group or []} or None,
        head=head,
        threshold=threshold,
        max_rows=max_rows,
        seed=seed,
        dataset=test.stem,
        keep=made_folder(out),
    )
    finish(comparison, out)


@app.command()
@reported
def audit(
    before: Annotated[str, typer.Argument(help="The model that recourse was issued on: an ONNX file, or 'package.module:function'.")],
    after: Annotated[str, typer.Argument(help="The model that is deployed, likewise.")],
    people: Annotated[Path, typer.Option("--people", help="Everyone, accepted and rejected: raw features, CSV or Parquet.")],
    action_set: ActionsOption,
    issued: Annotated[Path | None, typer.Option("--issued", help="Advice already given: the features people were told to reach.")] = None,
    group: Annotated[list[str] | None, typer.Option("--group", help="Column to report by subgroup. May be repeated.")] = None,
    label: LabelOption = None,
    target: TargetOption = None,
    head: HeadOption = None,
    threshold: ThresholdOption = None,
    max_vd: Annotated[float | None, typer.Option("--max-vd", help="Largest Validity Drop allowed, a share such as 0.02.")] = None,
    max_drift: Annotated[float | None, typer.Option("--max-drift", help="Largest drift of the favourable rate allowed, a share.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the report to this file.")] = None,
    state: Annotated[
        Path | None, typer.Option("--state", help=".safetensors state of the first model, where a function builds it.")
    ] = None,
    state_after: Annotated[Path | None, typer.Option("--state-after", help="The same for the second model.")] = None,
    seed: SeedOption = 0,
) -> None:
    """Report what replacing one model by another does to recourse, and judge it.

    Ends with 0 where every limit held, 1 where one is broken, 2 where the audit could not run.
    """
    from cfptq import api

    check_writable(json)
    actions = read_action_set(action_set)
    frame = read_table(people)
    report = api.audit(
        as_audited(before, state),
        as_audited(after, state_after),
        frame,
        actions,
        issued=None if issued is None else read_table(issued),
        groups=tuple(group or ()),
        label=label,
        target=target,
        head=head,
        threshold=threshold,
        seed=seed,
    )
    gate = report.gate(max_vd, max_drift)
    if json is not None:
        report.to_json(json)
    show(report)
    say(str(gate))
    if not gate:
        raise typer.Exit(BROKEN)


@app.command()
@reported
def datasets(
    names: Annotated[list[str] | None, typer.Argument(help="Which; all by default.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Download what is missing into the cache.")] = False,
) -> None:
    """Show where the public data sets lie on this machine, and download them."""
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
