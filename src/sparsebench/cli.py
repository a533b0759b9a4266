"""The command line: train, study, import, report, list, sql, export, compress, inspect, decompress, latency, export-model."""

from __future__ import annotations

import sys
import warnings
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsebench import network_commands, study_commands, terminal
from sparsebench.assignments import parse_assignments, parse_value
from sparsebench.environment_options import Data, Device
from sparsebench.errors import SparsebenchError

__all__ = ["app", "main"]

INTERRUPTED = 130  # the exit status of a program that Ctrl-C ended

app = typer.Typer(
    help="Make neural networks sparse while they train, and see what that costs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(study_commands.app, name="study")
app.command("latency")(network_commands.latency)
app.command("export-model")(network_commands.export_model)


class Listing(str, Enum):
    """What `sparsebench list` can list."""

    methods = "methods"
    workloads = "workloads"
    studies = "studies"


class ValueType(str, Enum):
    """What `sparsebench compress --values` can round to."""

    float16 = "float16"
    bfloat16 = "bfloat16"


Out = Annotated[Path, typer.Option("--out", help="Results folder; made where it is missing.", show_default=True)]
Directory = Annotated[Path, typer.Argument(help="Results folder, as `sparsebench study run`, `train` or `import` made it.")]


@app.command()
def train(
    workload: Annotated[str, typer.Argument(help="What to train; see `sparsebench list workloads`.")],
    method: Annotated[str, typer.Option(help="How it becomes sparse; see `sparsebench list methods`.")] = "dense",
    sparsity: Annotated[float | None, typer.Option(help="Fraction of the weights to drop, such as 0.9.")] = None,
    penalty: Annotated[
        float | None, typer.Option(help="Weight of the penalty, in multiples of 1/N with N training examples.")
    ] = None,
    begin: Annotated[
        str | None, typer.Option(help='When sparsification begins: a fraction of training (0.2), "300 steps" or "5 epochs".')
    ] = None,
    end: Annotated[str | None, typer.Option(help="When it ends; as --begin.")] = None,
    frequency: Annotated[str | None, typer.Option(help="Time between two updates of the masks; as --begin.")] = None,
    steps: Annotated[str | None, typer.Option(help='Length of training: a number of steps, or "5 epochs".')] = None,
    seed: Annotated[int, typer.Option(help="Seed of initial weights, data order and noise.")] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Any other argument of the method or setting of the recipe; repeatable."
        ),
    ] = None,
    data: Data = None,
    device: Device = None,
    out: Out = Path("runs/train"),
    checkpoint_seconds: Annotated[float, typer.Option(help="Seconds between checkpoints.", min=0.0)] = 60.0,
) -> None:
    """Train one network and measure it at every evaluation point.

    Example: sparsebench train digits --method magnitude --sparsity 0.9

    The same command again goes on where an interrupted run stopped; a finished run is not trained twice. In several processes:
    torchrun --nproc-per-node 2 -m sparsebench train ...
    """
    from sparsebench.training.start_up import set_up_process

    set_up_process()  # before torch is loaded
    from sparsebench.sparsifiers.registry import METHODS
    from sparsebench.training.config import method_parameters, resolve
    from sparsebench.training.devices import devices
    from sparsebench.training.run import run_folder
    from sparsebench.training.run import train as train_run
    from sparsebench.workloads.workload import Recipe

    given: dict[str, Any] = {"sparsity": sparsity, "penalty": penalty, "begin": begin, "end": end, "frequency": frequency}
    given = {name: value for name, value in given.items() if value is not None}
    given |= parse_assignments(set_ or [], "--set", "--set learning_rate=0.001")
    if steps is not None:
        given["steps"] = parse_value(steps)
    known = method_parameters(METHODS.get(method))
    settings = {name: value for name, value in given.items() if name in Recipe.model_fields and name not in known}
    parameters = {name: value for name, value in given.items() if name not in settings}
    config = resolve(workload, method, parameters, settings, seed)
    folder = run_folder(out, config)
    if not devices().is_main:
        train_run(config, folder, checkpoint_seconds=checkpoint_seconds)
        return
    with terminal.training_progress(config) as observe:
        record = train_run(config, folder, checkpoint_seconds=checkpoint_seconds, observe=observe)
    terminal.print_record(record, folder)


@app.command("import")
def import_(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="CSV files that Gale et al. published; keep their names.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Results folder, one for each workload; made where it is missing.")],
) -> None:
    """Add the published results of Gale, Elsen and Hooker 2019 (arXiv:1902.09574) to a results folder.

    Example: sparsebench import rn50_magnitude_pruning.csv rn50_random_pruning.csv --out runs/gale2019-resnet50

    Their rows have the source gale2019 and the split test, their only one. What the folder holds already is not added twice.
    """
    from sparsebench.records.importing.results_folder import import_files

    summary = import_files(files, out)
    terminal.say(f"{summary.runs:,} runs ({summary.rows:,} evaluations) read, {summary.new_runs:,} of them new; results: {out}")


@app.command()
def report(
    directory: Directory,
    out: Annotated[
        Path | None, typer.Option("--out", help="The page to write; report.html in the folder where left out.")
    ] = None,
    paper: Annotated[
        str | None,
        typer.Option(help="Draw the counterparts of a paper's figures instead, into PAPER.html: gale2019.", metavar="PAPER"),
    ] = None,
    beside: Annotated[
        Path | None,
        typer.Option(
            help="With --paper: a second results folder of the same workload to draw beside the first.", metavar="FOLDER"
        ),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Write the figures of the page into this folder, too, as PDF and SVG.", metavar="FOLDER")
    ] = None,
) -> None:
    """Write the page about a results folder, and print the value of every method at every sparsity.

    Example: sparsebench report runs/quickstart
    """
    from sparsebench.analysis.failures_page import nothing_but_failures, write_failures_page
    from sparsebench.analysis.page import StudyReport
    from sparsebench.analysis.paper import paper_figures, write_paper_page
    from sparsebench.analysis.print_figures import print_figures

    if beside is not None and paper is None:
        raise SparsebenchError(
            "--beside goes with --paper: name the paper whose figures are to be drawn, such as --paper gale2019"
        )
    if paper is None and nothing_but_failures(directory):
        terminal.say("no run has finished: there are no values and no figures, and the page lists the failures")
        terminal.say(f"report: {write_failures_page(directory, out)}")
        return
    if paper is None:
        study = StudyReport.of(directory)
        page = study.write_page(out)
        terminal.print_best_values(study.best)
        named = study.figures.named
    else:
        drawn = paper_figures(directory, paper, beside)
        page = write_paper_page(drawn, paper, out)
        named = drawn.named
    if figures is not None:
        terminal.say(f"figures: {len(print_figures(named(), figures))} files in {figures}")
    terminal.say(f"report: {page}")


@app.command("list")
def list_(what: Annotated[Listing, typer.Argument(help="What to list.")]) -> None:
    """Print what exists, a line each.

    Example: sparsebench list methods
    """
    if what is Listing.methods:
        from sparsebench.sparsifiers.registry import METHODS

        rows = [(method.name, method.summary) for method in METHODS]
    elif what is Listing.workloads:
        from sparsebench.workloads.registry import WORKLOADS

        rows = [(workload.name, workload.summary) for workload in WORKLOADS]
    else:
        from sparsebench.studies.study_file import shipped_studies

        rows = [(study.name, study.description) for study in shipped_studies().values()]
    terminal.print_list(rows)


@app.command()
def sql(
    directory: Directory,
    statement: Annotated[
        str,
        typer.Argument(
            help="One query in DuckDB's dialect over the tables `results`, `layers`, `distributions` and `published`."
        ),
    ],
) -> None:
    """Query the table over all runs.

    Example: sparsebench sql runs/quickstart "select method, max(value) from results where split = 'test' group by all"
    """
    from sparsebench.records.query import query

    terminal.print_frame(query(directory, statement))


@app.command()
def export(
    directory: Directory,
    target: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write: .csv, .csv.gz or .parquet.")],
    table: Annotated[str, typer.Option(help="results, layers, distributions or published.")] = "results",
) -> None:
    """Write a table over all runs as CSV or Parquet.

    Example: sparsebench export runs/quickstart quickstart.csv
    """
    from sparsebench.records.export import export as write

    rows = write(directory, target, table)
    terminal.say(f"{target}: {rows:,} rows")


@app.command()
def compress(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Weights: a .safetensors file, or what torch.save(model.state_dict(), IN) wrote.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The compressed checkpoint to write, such as small.safetensors.")],
    values: Annotated[
        ValueType | None,
        typer.Option(help="Round weights to this type: half the size, no longer the same to the last bit.", show_default=False),
    ] = None,
    unsigned_zeros: Annotated[
        bool,
        typer.Option(
            "--unsigned-zeros",
            help="Leave out -0.0 too, which `weight * mask` makes of negative weights; it comes back as 0.0.",
        ),
    ] = False,
    zstd: Annotated[
        int | None,
        typer.Option(
            help="Compress further with Zstandard at this level, 1 (fast) to 22 (small). Needs the package zstandard.",
            metavar="LEVEL",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make the file of a sparse network small: zeros are left out, everything else is kept to the last bit.

    Example: sparsebench compress model.pt small.safetensors

    `sparsebench decompress` gives the weights back; in Python, sparsebench.storage.load_compressed does.
    """
    import torch

    from sparsebench.storage import inspect as inspect_checkpoint
    from sparsebench.storage import save_compressed
    from sparsebench.storage.state_files import read_state

    _refuse_same_file(source, target)
    state = read_state(source)
    rounded_to = None if values is None else getattr(torch, values.value)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        save_compressed(state, target, values=rounded_to, signed_zeros=not unsigned_zeros, zstd=zstd)
    for warning in caught:
        typer.echo(f"warning: {warning.message}", err=True)
    held = inspect_checkpoint(target)
    terminal.say(f"{target}: {held.file_bytes:,} bytes, {held.ratio:.2f} times smaller than the dense tensors")


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A compressed checkpoint, such as a run's model.safetensors.")],
) -> None:
    """Print what a compressed checkpoint holds: every tensor, how sparse it is, how it is stored, how many bytes that takes.

    Example: sparsebench inspect small.safetensors
    """
    from sparsebench.storage import inspect as inspect_checkpoint

    terminal.say(str(inspect_checkpoint(file)))


@app.command()
def decompress(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A compressed checkpoint.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The plain .safetensors file to write.")],
    max_bytes: Annotated[
        int | None,
        typer.Option(
            help="Refuse a file that unfolds to more bytes than this. 1 GiB, or 256 times the size of IN if that is more, where "
            "left out.",
            metavar="BYTES",
            min=0,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Turn a compressed checkpoint back into an ordinary file of weights, zeros included.

    Example: sparsebench decompress small.safetensors model.safetensors
    """
    from sparsebench.storage import load_compressed
    from sparsebench.storage.state_files import write_state

    _refuse_same_file(source, target)
    if target.suffix != ".safetensors":
        raise SparsebenchError(f"OUT is {target}: expected a name that ends in .safetensors, the format that is written")
    state = load_compressed(source, max_bytes=max_bytes)
    write_state(state, target)
    terminal.say(f"{target}: {target.stat().st_size:,} bytes, {len(state)} tensors")


def _refuse_same_file(source: Path, target: Path) -> None:
    if source.resolve() == target.resolve():
        raise SparsebenchError(f"IN and OUT are the same file, {source}: choose another name for OUT")


def main() -> None:
    """Run the command line: a user's mistake gives one line and exit status 2, an interruption 130."""
    try:
        status = app(prog_name="sparsebench", standalone_mode=False)
    except SparsebenchError as error:
        terminal.say_error(str(error))
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except Exception as error:
        # Typer's complaints about the command itself have a class that not every release makes public.
        complaint = getattr(error, "format_message", None)
        if complaint is None:
            raise
        if type(error).__name__ != "NoArgsIsHelpError":  # the help is on the screen already
            terminal.say_error(f"{complaint()} Try --help.")
        sys.exit(2)
    if status == INTERRUPTED:
        terminal.say_error("interrupted; the same command goes on from the last checkpoint")
    sys.exit(status)
