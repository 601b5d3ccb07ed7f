"""The command line: python -m quantizers, or pyengine quantize."""

from __future__ import annotations

from typing import Literal

import click

from pyengine._cli_options import SlowProgress
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
    method: Literal["plain", "search", "gptq"] | None,
    calibration: tuple[str, ...],
    pure: bool,
    tokens: int,
    force: bool,
) -> None:
    """Writes a GGUF file whose matrices have fewer bits."""
    progress = SlowProgress("{done} of {total} tensors, {left:.0f} s left", enabled=True)
    try:
        report = quantize(
            model,
            out,
            dtype=dtype,
            method=method or ("gptq" if calibration else "search"),
            calibration=calibration,
            pure=pure,
            tokens=tokens,
            overwrite=force,
            progress=lambda done, total, _: progress(done, total),
        )
    finally:
        progress.clear()
    click.echo(f"{out}: {report.n_bytes} bytes, {report.bits_per_weight:.2f} bits per weight")
    for name, share in sorted(report.errors.items(), key=lambda item: -item[1])[:5]:
        click.echo(f"  {name}: outputs off by {share:.2%}")


if __name__ == "__main__":
    main(prog_name="python -m quantizers")
