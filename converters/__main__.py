"""`python -m converters`: a Hugging Face checkpoint, or adapter, in; one GGUF file out."""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path

import click

from converters import _hub
from converters._adapter import convert_adapter, is_adapter
from converters._convert import convert
from converters._encode import BY_NAME
from converters._progress import ProgressBar
from converters._quantized import is_quantized
from converters._types import AUTO, NAMES
from pyengine._errors import ArgumentError, ModelFileError, PyengineError

# What a shell reports for a program that Ctrl-C ended: 128 + SIGINT.
_INTERRUPTED = 130
# The same for SIGTERM.
_TERMINATED = 143


def _read_tensor_types(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    found: dict[str, str] = {}
    for value in values:
        pattern, equals, name = value.rpartition("=")
        if not equals or not pattern or name.lower() not in BY_NAME:
            raise click.BadParameter(
                f"{value!r}: expected PATTERN=TYPE, TYPE one of {', '.join(BY_NAME)}"
            )
        if found.setdefault(pattern, name) != name:
            raise click.BadParameter(f"{value!r}: expected one type, found {found[pattern]}, too")
    return found


def _refuse_options(adapts: bool, of_models: bool, of_adapters: bool) -> None:
    if adapts and of_models:
        raise click.UsageError(
            "--pure, --tensor-type, --lora: expected the folder of a model, found one of an adapter"
        )
    if of_adapters and not adapts:
        raise click.UsageError("--base: expected the folder of an adapter, found another")


def _default_type(source: str, adapts: bool) -> str:
    if adapts:
        return "f32"
    return AUTO if is_quantized(Path(source)) else "q4_0"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source", metavar="DIR")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="File to write. Default: <name of DIR>-<type>.gguf in the current folder.",
)
@click.option(
    "--type",
    "dtype",
    type=click.Choice(list(NAMES), case_sensitive=False),
    help="Type of the matrices. Norms and biases stay f32. auto: that of each in the checkpoint, "
    "or the smallest that holds it. Default: q4_0, of an adapter f32, of quantized weights auto.",
)
@click.option(
    "--pure",
    is_flag=True,
    help="The same type for the embedding and the output head, which otherwise get q8_0.",
)
@click.option(
    "--tensor-type",
    "tensor_types",
    metavar="PATTERN=TYPE",
    multiple=True,
    callback=_read_tensor_types,
    help="Another type for the matrices of a name, as in 'blk.*.ffn_down=q6_k'. May be repeated; "
    "the first pattern that fits decides.",
)
@click.option(
    "--lora",
    metavar="ADAPTER_DIR",
    type=click.Path(path_type=Path),
    help="A LoRA adapter that is merged into the weights.",
)
@click.option(
    "--base",
    metavar="HF_DIR",
    type=click.Path(path_type=Path),
    help="Of an adapter: the folder of its base's config.json. Default: what the adapter names, "
    "or its own folder.",
)
@click.option("--name", help="general.name in the file. Default: as the checkpoint says.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.option(
    "--self-test/--no-self-test",
    default=True,
    help="Store texts with the ids of the original tokenizer, which loading checks.",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress and no summary.")
def _command(
    source: str,
    output: Path | None,
    dtype: str | None,
    pure: bool,
    tensor_types: dict[str, str],
    lora: Path | None,
    base: Path | None,
    name: str | None,
    force: bool,
    self_test: bool,
    quiet: bool,
) -> None:
    """Converts the checkpoint in DIR to a GGUF file.

    hf:org/name, perhaps with @revision, is fetched from the Hugging Face hub first. The folder of
    a LoRA adapter becomes the file that llama.cpp loads beside its base's.
    """
    from_hub = source.startswith(_hub.PREFIX)
    adapts = not from_hub and is_adapter(source)
    _refuse_options(adapts, pure or bool(tensor_types) or lora is not None, base is not None)
    stem = _hub.model_name(source) if from_hub else Path(source).resolve().name
    kind = dtype or _default_type(source, adapts)
    target = output or Path(f"{stem}-{kind}.gguf")
    if from_hub and target.exists() and not force:
        raise ModelFileError(f"{target}: expected no file there, found one; --force replaces it")
    if from_hub and dtype is None and output is None:
        # Only its config.json tells the type that the file is named after.
        name, source = name or stem, str(_hub.fetch(source))
        target = Path(f"{stem}-{_default_type(source, False)}.gguf")
    bar = ProgressBar(sys.stderr, quiet=quiet)
    try:
        if adapts:
            summary = convert_adapter(
                source,
                target,
                base=base,
                dtype=kind,
                name=name,
                progress=bar,
                overwrite=force,
            )
        else:
            summary = convert(
                source,
                target,
                dtype=dtype,
                pure=pure,
                tensor_types=tensor_types,
                lora=lora,
                name=name,
                progress=bar,
                overwrite=force,
                self_test=self_test,
            )
    except KeyboardInterrupt:
        # Caught here and not left to click, which would print a line of its own and exit 1.
        bar.close()
        click.echo("error: interrupted; no file was written", err=True)
        raise click.exceptions.Exit(_INTERRUPTED) from None
    finally:
        bar.close()
    if not quiet:
        click.echo(summary.table())


def main(arguments: list[str] | None = None, *, prog_name: str = "python -m converters") -> int:
    """Runs the command line.

    Args:
        arguments: What follows the program's name; the process's own arguments by default.
        prog_name: What usage messages call the program.

    Returns:
        The exit code: 0, 1 for an error, 2 for wrong usage, 130 after Ctrl-C.
    """
    # Python would end at once and leave the unfinished file behind.
    with contextlib.suppress(ValueError):  # not in the main thread: the host's own business
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))
    try:
        # Not standalone: click's own error messages run over several lines.
        code = _command.main(arguments, prog_name=prog_name, standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()}", err=True)
        return error.exit_code
    except MemoryError:
        click.echo("error: out of memory", err=True)
        return 1
    except (PyengineError, OSError) as error:
        # One line whatever the names in it hold.
        click.echo("error: " + " ".join(str(error).split()), err=True)
        return 2 if isinstance(error, ArgumentError) else 1
    # click returns the code of an early exit, and otherwise what the command returned: None.
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
