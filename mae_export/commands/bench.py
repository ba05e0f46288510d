"""The command that measures speed: `bench`. Steps are imported inside, so that --help stays light."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar, get_args

import typer

from mae_export.commands.arguments import Force, Json
from mae_export.errors import MachineError, UsageError
from mae_export.export.options import Rival
from mae_export.files import require_place
from mae_export.runtime.providers import BACKENDS, Backend

if TYPE_CHECKING:
    from mae_export.runtime.app import FeatureSession
    from mae_export.runtime.bench import Contender, Maker

T = TypeVar("T")
ON_CPU = ("cpu", "openvino")


def bench_command(
    model: Annotated[Path, typer.Argument(help="A graph or an engine.")],
    backend: Annotated[Backend, typer.Option(help="What runs it.")] = "auto",
    against: Annotated[
        str,
        typer.Option(metavar="NAMES", help="Comma separated: torch, compile, torch-bf16, or other backends."),
    ] = "",
    batch: Annotated[str, typer.Option(metavar="N,...", help="Images per run.")] = "1,8",
    keep: Annotated[
        str | None, typer.Option(metavar="R,...", help="Shares of visible patches; 1,0.25 where the model takes masks.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each contender, which take turns.")] = 20,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of each contender; 0 lets it choose.")] = 0,
    figure: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw the result there.")] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure speed on this machine, beside its quickest matrix product and, if wanted, PyTorch and other backends."""
    from mae_export.report import console, speed
    from mae_export.runtime.bench import BenchPlan, BenchReport, bench
    from mae_export.runtime.clocks import cpu_mhz, gpu_mhz
    from mae_export.runtime.doctor import doctor
    from mae_export.runtime.session import open_session

    shares = BenchPlan.shares if keep is None else _numbers(keep, float)
    plan = BenchPlan(batches=_numbers(batch, int), shares=shares, rounds=rounds)
    if figure is not None:
        require_place(figure, suffix=".png", force=force)
        from mae_export.report.speed_figure import save_bench_figure  # a missing package is told before the work
    with ExitStack() as stack, console.steps() as progress:
        progress("opening", 0, 1)
        session = stack.enter_context(open_session(model, backend=backend, threads=threads))
        if keep is not None and session.manifest.mask_mode in ("none", "mask-token") and set(shares) != {1.0}:
            raise UsageError(
                f"--keep {keep}: {session.name} always computes every patch; export it with --mask keep or patches"
            )
        makers, described = _contenders(stack, model, session, against=against, threads=threads)
        before = cpu_mhz(), gpu_mhz()
        cases = bench(session.manifest, makers, plan=plan, gemms=_gemms(session, against, threads), progress=progress)
        found = doctor()
        report = BenchReport(
            model=session.name,
            sha256=session.digest,
            contenders=described,
            processor=f"{found.cpu.model}, {found.cpu.cores} cores",
            gpus=tuple(gpu.name for gpu in found.gpus),
            cpu_mhz=(before[0], cpu_mhz()),
            gpu_mhz=(before[1], gpu_mhz()),
            cases=cases,
        )
    if figure is not None:
        save_bench_figure(report, figure)
    if as_json:
        console.show_json(asdict(report))
    else:
        speed.show_bench(report)


def _contenders(
    stack: ExitStack, model: Path, session: FeatureSession, *, against: str, threads: int
) -> tuple[dict[str, Maker], dict[str, str]]:
    """What makes runs, and what each contender is, the model itself first."""
    from mae_export.runtime.session import open_session

    makers: dict[str, Maker] = {session.choice.backend: partial(partial, session.run)}
    described = {session.choice.backend: f"{session.description} ({session.choice.reason})"}
    for name in _names(against):
        if name in makers:
            raise UsageError(f"--against names {name!r}, which runs already; name other contenders, each once")
        rival = _rival(session, name, threads)
        if rival is not None:
            makers[name], described[name] = rival
            continue
        other = stack.enter_context(open_session(model, backend=_backend(name), threads=threads))
        makers[name], described[name] = partial(partial, other.run), other.description
    return makers, described


def _rival(session: FeatureSession, name: str, threads: int) -> tuple[Maker, str] | None:
    """PyTorch on the same work; None when the name is no rival's."""
    rival: Rival | None = next((known for known in get_args(Rival) if known == name), None)
    if rival is None:
        return None
    import torch

    from mae_export.export.rivals import Device, rival_maker

    device: Device = "cpu" if session.choice.backend in ON_CPU else "cuda"
    maker = rival_maker(session.manifest, rival, device=device, threads=threads)
    return maker, f"PyTorch {torch.__version__}, {rival}, {device}"


def _gemms(session: FeatureSession, against: str, threads: int) -> list[Contender]:
    """Matrix products on the device that the model runs on; none on a GPU without PyTorch to ask for one."""
    from mae_export.runtime.gemm import gemms_on_cpu

    if session.choice.backend in ON_CPU:
        gemms = gemms_on_cpu(threads=threads)
        if set(_names(against)) & set(get_args(Rival)):  # PyTorch is imported for a product only where it runs anyway
            from mae_export.export.rivals import gemm_of_torch

            gemms.append(gemm_of_torch())
        return gemms
    try:
        from mae_export.export.rivals import gemm_on_gpu

        return [gemm_on_gpu(session.manifest.precision)]
    except (ModuleNotFoundError, MachineError):
        return []


def _names(against: str) -> list[str]:
    return [name for part in against.split(",") if (name := part.strip())]


def _backend(name: str) -> Backend:
    for known in BACKENDS:
        if name == known:
            return known
    expected = ", ".join((*get_args(Rival), *BACKENDS))
    raise UsageError(f"there is no contender {name!r}; expected one of {expected}")


def _numbers(text: str, kind: Callable[[str], T]) -> tuple[T, ...]:
    """Comma separated numbers."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{text!r} are no numbers; write for example 1,8 or 1,0.25") from None
