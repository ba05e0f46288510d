"""Arguments that several commands take, written once."""

from __future__ import annotations

from typing import Annotated

import typer

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="State a fact that the tensors do not say, such as heads=12."),
]
FamilyName = Annotated[
    str | None,
    typer.Option("--family", help="Family of the checkpoint, see `mae-export families`; recognised when left out."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is already there.")]
