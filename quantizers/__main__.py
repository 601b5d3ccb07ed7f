"""The command line: python -m quantizers, or pyengine quantize."""

from __future__ import annotations

import sys

import click

from pyengine import PyengineError
from quantizers._quantize import quantize


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=click.Path(exists=True, dir_okay=False))
@click.option("-o", "--out", required=True, help="The file to write.")
@click.option("--type", "dtype", default="q4_0", show_default=True, help="Type of matrices.")
@click.option(
    "--method",
    type=click.Choice(["plain", "search", "gptq"]),
    help="How weights are rounded: gptq where there is a calibration text, else search.",
)
@click.option("--calibration", multiple=True, help="A text file, for gptq; may be repeated.")
@click.option("--pure", is_flag=True, help="The same type for embedding and output head.")
@click.option("--tokens", default=65536, show_default=True, help="Calibration tokens at most.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def main(
    model: str,
    out: str,
    dtype: str,
    method: str | None,
    calibration: tuple[str, ...],
    pure: bool,
    tokens: int,
    force: bool,
) -> None:
    """Writes a GGUF file whose matrices have fewer bits."""
    chosen = method or ("gptq" if calibration else "search")
    shown = sys.stderr.isatty()

    def progress(done: int, total: int, name: str) -> None:
        if shown:
            click.echo(f"\r\033[K{done} of {total}  {name}", nl=False, err=True)

    try:
        report = quantize(
            model,
            out,
            dtype=dtype,
            method=chosen,  # type: ignore[arg-type]
            calibration=calibration,
            pure=pure,
            tokens=tokens,
            overwrite=force,
            progress=progress,
        )
    except PyengineError as error:
        raise click.ClickException(str(error)) from None
    finally:
        if shown:
            click.echo("\r\033[K", nl=False, err=True)
    click.echo(f"{out}: {report.n_bytes} bytes, {report.bits_per_weight:.2f} bits per weight")
    for name, share in sorted(report.errors.items(), key=lambda item: -item[1])[:5]:
        click.echo(f"  {name}: outputs off by {share:.2%}")


if __name__ == "__main__":
    main(prog_name="python -m quantizers")
