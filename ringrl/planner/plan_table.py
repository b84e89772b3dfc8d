"""Plans as tables for people."""

from typing import Any

from rich.table import Table

from ringrl.planner.compiled import CompiledPlan
from ringrl.planner.decode_plan import DecodePlan, MaxCache
from ringrl.planner.length_search import Attempt
from ringrl.planner.longest_context import MaxContext


def to_table(plan: CompiledPlan, title: str) -> Table:
    """Two columns: what, and how much; the verdict comes first."""
    rows = [
        ("fits", "[green]yes[/green]" if plan.fits else "[red]no[/red]"),
        ("slice", f"{plan.topology}: {plan.devices} devices ({plan.device_kind})"),
        ("mesh", " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())),
        ("tokens a step", f"{plan.tokens:,} ({plan.tokens // plan.row_tokens} x {plan.row_tokens:,})"),
        ("parameters", f"{plan.parameters:,}"),
        *_memory_rows(plan),
        *_speed_rows(plan),
    ]
    if plan.mesh_note:
        rows.insert(3, ("note", plan.mesh_note))
    if plan.reason:
        rows.append(("compiler", plan.reason))
    return _two_columns(title, [*rows, ("compiled in", f"{plan.compile_seconds:.0f} s")])


def to_max_context_table(found: MaxContext, title: str) -> Table:
    """Two columns: the longest row, and what it needs."""
    rows = [("longest context", f"{found.max_context:,} tokens (training.row_steps={found.row_steps})")]
    if found.too_long is not None:
        rows.append(("does not fit", f"{found.too_long:,} tokens"))
    if found.plan is not None:
        rows += [
            ("slice", f"{found.topology}: {found.devices} devices ({found.device_kind})"),
            ("tokens a step", f"{found.tokens:,}"),
            *_memory_rows(found.plan),
            *_speed_rows(found.plan),
        ]
    return _two_columns(title, [*rows, ("found in", f"{found.seconds:.0f} s, {len(found.attempts)} compilations")])


def to_decode_table(plan: DecodePlan, title: str) -> Table:
    """Two columns: what an agent step needs; the verdict comes first."""
    rows = [("fits", "[green]yes[/green]" if plan.fits else "[red]no[/red]"), *_decode_rows(plan)]
    if plan.reason:
        rows.append(("compiler", plan.reason))
    return _two_columns(title, [*rows, ("compiled in", f"{plan.compile_seconds:.0f} s")])


def to_max_cache_table(found: MaxCache, title: str) -> Table:
    """Two columns: the longest cache, and what it needs."""
    rows = [("longest context", f"{found.max_context:,} tokens of each environment")]
    if found.too_long is not None:
        rows.append(("does not fit", f"{found.too_long:,} tokens"))
    if found.plan is not None:
        rows += _decode_rows(found.plan)
    return _two_columns(title, [*rows, ("found in", f"{found.seconds:.0f} s, {len(found.attempts)} compilations")])


def attempt_line(attempt: Attempt) -> str:
    """A line of progress."""
    known = attempt.bytes_per_device is not None
    size = f"{format_bytes(attempt.bytes_per_device or 0)} a device" if known else attempt.reason
    if attempt.host_bytes_per_device:
        size = f"{size} and {format_bytes(attempt.host_bytes_per_device)} of its host"
    verdict = "fits" if attempt.fits else "does not fit"
    return f"{attempt.row_tokens:>13,} tokens: {verdict}, {size}, {attempt.seconds:.0f} s"


def format_bytes(size: int | float) -> str:
    """In binary units."""
    for unit, power in (("TiB", 40), ("GiB", 30)):
        if size >= 2 ** (power - 2):
            return f"{size / 2**power:.2f} {unit}"
    return f"{size / 2**20:.1f} MiB"


def numbers_table(title: str, first: str, *others: str) -> Table:
    """An empty table whose first column is a name and whose other columns are numbers."""
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for column in others:
        table.add_column(column, justify="right")
    return table


def _two_columns(title: str, rows: list[tuple[str, str]]) -> Table:
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for what, value in rows:
        table.add_row(what, value)
    return table


def _decode_rows(plan: DecodePlan) -> list[tuple[str, str]]:
    rows = [
        ("slice", f"{plan.topology}: {plan.devices} devices ({plan.device_kind})"),
        ("mesh", " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())),
        ("environments", f"{plan.environments}, each of {plan.context_tokens:,} tokens in {plan.cache_dtype}"),
        ("parameters", f"{plan.parameters:,}"),
        ("bytes a device", f"{format_bytes(plan.bytes_per_device)} of {format_bytes(plan.hbm_bytes)}"),
    ]
    if plan.mesh_note:
        rows.insert(2, ("note", plan.mesh_note))
    kinds = {"cache": plan.cache_bytes, "parameters": plan.parameter_bytes, "temporary": plan.temporary_bytes}
    rows.append(("of these", ", ".join(f"{kind} {format_bytes(size)}" for kind, size in kinds.items())))
    if plan.sent is not None:
        sizes = {kind: getattr(plan.sent, kind) for kind in ("combination", "tensor", "other")}
        sent = ", ".join(f"{kind} {size / 2**10:,.1f} KiB" for kind, size in sizes.items())
        rows.append(("sent a step and device", sent))
        rows.append(("collectives a layer", f"{plan.sent.combinations_per_layer:g} for the combination"))
    if plan.seconds_bound is not None:
        rows.append(("a step (roofline)", f"at least {plan.seconds_bound * 1e3:.2f} ms, set by {plan.bound_by}"))
    return rows


def _memory_rows(plan: CompiledPlan) -> list[tuple[str, str]]:
    rows = [("bytes a device", f"{format_bytes(plan.bytes_per_device)} of {format_bytes(plan.hbm_bytes)}")]
    shown = [
        f"{kind} {format_bytes(size)}" for kind, size in plan.memory.items() if size * 100 >= plan.bytes_per_device
    ]
    if shown:
        rows.append(("of these", ", ".join(shown)))
    if plan.host_bytes_per_device:
        available = f" of {format_bytes(plan.host_bytes_available)}" if plan.host_bytes_available else ""
        rows.append(("host memory a device", format_bytes(plan.host_bytes_per_device) + available))
    return rows


def _speed_rows(plan: CompiledPlan) -> list[tuple[str, str]]:
    executed = "not counted" if plan.executed_flops is None else f"{plan.executed_flops:.3g}"
    more = f", {plan.executed_flops / plan.model_flops:.2f} times as many" if plan.executed_flops else ""
    rows = [("FLOPs a step", f"useful {plan.model_flops:.3g}, executed {executed}{more}")]
    if plan.traffic is not None:
        kinds = (("ring traffic a device", "ring"), ("other traffic a device", "other"))
        rows += [(name, _sent(plan.traffic, kind)) for name, kind in kinds if plan.traffic[kind]]
    if plan.mfu_bound is not None:
        rows.append(("MFU bound (roofline)", f"at most {plan.mfu_bound:.1%}, set by {plan.mfu_bound_by}"))
    return rows


def _sent(traffic: dict[str, int], kind: str) -> str:
    waited: Any = traffic[f"{kind}_waited"]
    behind = "all behind computation" if not waited else f"{format_bytes(waited)} of it waited for"
    return f"{format_bytes(traffic[kind])} a step, {behind}"
