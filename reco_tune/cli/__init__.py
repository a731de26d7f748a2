"""The command line: one module for each command. It selects and connects; it computes nothing. Each command imports the
heavy packages that it needs.

A user's mistake ends with one sentence on stderr and exit code 2, a failed run with 1. Only --debug prints a traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, NoReturn

import typer

from reco_tune.cli import (
    bench,
    clean,
    demo,
    diff,
    evaluate,
    export,
    extend,
    generate,
    plan,
    report,
    rescore,
    resume,
    run,
    settings,
    simulate,
    spaces,
    status,
    steer,
    sync,
    tokenize,
    train,
)
from reco_tune.errors import ReCoTuneError, StoppedError, no_space

app = typer.Typer(
    name="reco-tune",
    help=(
        "Tune the windowed training of autoregressive video transformers: how window, stride, first-frame probability"
        " and λ change speed and quality."
    ),
    epilog=(
        "Start with `reco-tune demo --quick`. An error is one sentence. Add --debug anywhere on the line to see its"
        " traceback."
    ),
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        import reco_tune

        print(f"reco-tune {reco_tune.__version__}")
        raise typer.Exit


@app.callback()
def _shared(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


_VERBS: list[Callable[..., None]] = [
    demo.demo,
    run.run,
    resume.resume,
    extend.extend,
    steer.stop,
    steer.retry,
    steer.pause,
    status.status,
    sync.sync,
    plan.plan,
    simulate.simulate,
    report.report,
    settings.settings,
]
_VERBS += [tokenize.tokenize, train.train, generate.generate, evaluate.evaluate]
_VERBS += [export.export, diff.diff, rescore.rescore, clean.clean]
for _verb in _VERBS:
    app.command()(_verb)
app.add_typer(spaces.app, name="spaces")
app.add_typer(bench.app, name="bench")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # batch systems send SIGTERM: treat it like Ctrl-C
    try:
        result = app(
            args=[argument for argument in given if argument != "--debug"], prog_name="reco-tune", standalone_mode=False
        )
        sys.stdout.flush()
    except BrokenPipeError:
        _leave_quietly()
    except Exception as error:
        if debug:
            raise
        sys.exit(_tell(error))
    except KeyboardInterrupt:
        result = StoppedError.exit_code
    if result == StoppedError.exit_code:  # typer's exit code for Ctrl-C
        sys.exit(_tell(StoppedError("stopped; finished work is kept, and the same command continues")))
    sys.exit(result if isinstance(result, int) else 0)


def _leave_quietly() -> NoReturn:
    """Ends without a message when the reader of the output has closed it, as `head` does."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes again at exit
    sys.exit(1)  # typer's exit code in this case


def _tell(error: Exception) -> int:
    """One sentence for an error; returns the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":  # `reco-tune` alone; typer hides the class
        try:
            print(error.ctx.get_help(), flush=True)  # type: ignore[attr-defined]
        except BrokenPipeError:
            _leave_quietly()
        return 0
    if isinstance(error, ReCoTuneError):
        message, code = str(error), error.exit_code
    elif hasattr(error, "format_message"):  # typer's error for a wrong argument
        message, code = _usage(error), 2
    elif no_space(error) and not getattr(error, "filename", None):
        message, code = (
            f"the disk is full ({error}); free some space and repeat the command; finished work is kept",
            2,
        )
    elif isinstance(error, OSError) and error.filename:  # a folder that cannot be written, a full disk
        reason = (error.strerror or type(error).__name__).lower()
        message, code = (
            f"{error.filename} cannot be used ({reason}); give another folder, or check its permissions and free space",
            2,
        )
    else:
        where = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        message, code = f"unexpected error ({where}); run it again with --debug for the traceback", 1
    print(f"reco-tune: {' '.join(message.split())}", file=sys.stderr)
    return code


def _usage(error: Exception) -> str:
    message: str = error.format_message().rstrip(".")  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    return f"{message}; see `{context.command_path if context else 'reco-tune'} --help`"
