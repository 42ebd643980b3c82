"""`splitwire models`: the networks that `export` and `plan` take by name, with suggested cuts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from splitwire.codec.errors import UsageError
from splitwire.console import err, out, print_json, print_table

if TYPE_CHECKING:
    from splitwire.codec.profile import Preprocessing
    from splitwire.models.recipes import Recipe, SuggestedCut


def models(
    name: Annotated[str | None, typer.Argument(help="Show one network in detail.")] = None,
    all_names: Annotated[
        bool, typer.Option("--all", help="List all names, also of networks without a recipe.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the networks that are known by name, with suggested cuts."""
    if name is not None and all_names:
        raise UsageError("--all lists every network; leave it out to see one")
    if all_names:
        from splitwire.models.catalogue import names

        listed = names()
        if as_json:
            print_json(listed)
        else:
            out.print("\n".join(listed), markup=False)
        return
    if name is not None:
        from splitwire.models.catalogue import recipe

        one = recipe(name)
        if as_json:
            print_json(_as_map(one))
        else:
            _print_one(one)
        return
    from splitwire.models.recipes import RECIPES

    if as_json:
        print_json([_as_map(one) for one in RECIPES.values()])
    else:
        _print_all(list(RECIPES.values()))


def _as_map(recipe: Recipe) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "task": recipe.task,
        "input_shape": recipe.input_shape,
        "parameters": recipe.parameters,
        "macs": recipe.macs,
        "classes": recipe.classes,
        "preprocessing": recipe.preprocessing,
        "cuts": [{"layer": cut.layer, "figures": cut.figures} for cut in recipe.cuts],
    }


def _print_all(recipes: list[Recipe]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    caption = "M: millions · GMAC: 10⁹ multiply-accumulates of one image · –: depends on the image"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    table.add_column("network", no_wrap=True)
    table.add_column("input", justify="right", no_wrap=True)
    table.add_column("M", justify="right", no_wrap=True)
    table.add_column("GMAC", justify="right", no_wrap=True)
    table.add_column("suggested cuts", overflow="fold")
    task = None
    for r in recipes:
        if r.task != task:
            task = r.task
            table.add_row(f"[bold]{task}[/]")
        _, _, height, width = r.input_shape
        layers = ", ".join(cut.layer for cut in r.cuts)
        table.add_row(r.name, f"{width}x{height}", f"{r.parameters / 1e6:.1f}", _gmac(r.macs), escape(layers))
    print_table(table, ("GMAC", "M", "input"))
    hint = "`splitwire models NAME` shows one of them, `--all` lists all names; `demo` is short for the first."
    err.print(hint, markup=False, soft_wrap=True)


def _print_one(recipe: Recipe) -> None:
    _, _, height, width = recipe.input_shape
    lines = {
        "network": f"{recipe.name}, {recipe.task}",
        "input": f"{width}x{height} pixels; {_in_words(recipe.preprocessing)}",
        "classes": recipe.classes,
        "size": f"{recipe.parameters:,} parameters, {_gmac(recipe.macs)} GMAC per image",
    }
    for what, text in lines.items():
        out.print(f"{what:<8} {text}", markup=False, soft_wrap=True)
    if any(cut.figures for cut in recipe.cuts):
        _print_figures(recipe.cuts)
        return
    layers = ", ".join(recipe.layers) or "none suggested; `splitwire plan` shows all of them"
    out.print(f"cuts     {layers}", markup=False, soft_wrap=True)


def _print_figures(cuts: tuple[SuggestedCut, ...]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("cut", overflow="fold")
    table.add_column("tensors", overflow="fold")
    for name in ("elements", "front", "b/el"):
        table.add_column(name, justify="right", no_wrap=True)
    for cut in cuts:
        f = cut.figures
        if f is None:
            table.add_row(escape(cut.layer), "–", "–", "–", "–")
            continue
        shapes = ", ".join("×".join(map(str, shape)) for shape in f.shapes)
        rate = "–" if f.bits_per_element is None else f"{f.bits_per_element:.3f}"
        table.add_row(escape(cut.layer), shapes, f"{f.elements:,}", f"{f.edge_macs_share:.0%}", rate)
    print_table(table, ("elements", "front", "tensors"))
    caption = "front: its share of the multiply-accumulates · b/el: bits per element · –: not measured"
    out.print(caption, markup=False, soft_wrap=True)


def _in_words(p: Preprocessing) -> str:
    if p.resize is None:
        resized = "not resized"
    elif isinstance(p.resize, tuple):
        resized = f"the whole image resized to {p.resize[1]}x{p.resize[0]}"
    else:
        resized = f"shorter side resized to {p.resize}"
    crop = "" if p.resize == p.crop else ", centre crop"
    plain = not any(p.mean) and set(p.std) == {1.0}
    return f"{resized} ({p.interpolation}){crop}, " + ("values in [0, 1]" if plain else "normalised")


def _gmac(macs: int | None) -> str:
    return "–" if macs is None else f"{macs / 1e9:,.2f}"
