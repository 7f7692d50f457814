"""The screen of `edgewise check`: the result of ``check.examine`` as rich tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgewise.apps.report import data_read, numbers
from edgewise.apps.runs.toml_text import inline_toml
from edgewise.plan.recipe.privacy import reason_of_word
from edgewise.privacy.card import FEWER, card_assumptions, card_promises, fewer_honest_rows, no_epsilon_sentence

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 100  # from this screen width on, the numbers of a pipeline stand in columns of their own


def show_check(console: Console, found: Mapping[str, Any], path: str) -> None:
    """Print the result of `edgewise check` (``examine``)."""
    from rich.table import Table
    from rich.text import Text

    console.print(Text(path, "bold").append(f"  sha256 {found['recipe_sha256'][:12]}", "dim not bold"), soft_wrap=True)
    console.print()
    console.print(trace_table(found["trace"], width=console.width))
    if found["trace_down"]:
        console.print(trace_table(found["trace_down"], "the way down", console.width))
    console.print(Text("who learns what", "bold"))
    claims = Table.grid(padding=(0, 1))
    for claim in found["claims"]:
        claims.add_row(Text(" •"), Text(claim))
    console.print(claims)
    console.print()
    console.print(privacy_table(found["privacy"]))
    if found["chosen"]:
        console.print(_chosen_values(found["privacy"]["word"], found["chosen"]))
        console.print()
    if found["ladder"]:
        for table in ladder_tables(found["ladder"]):
            console.print(table)
    if found["reading"]:
        console.print(Text("what is read", "bold"))
        console.print(data_read.data_read_table(found["reading"]))
        console.print()
    console.print(_numbers_table(found))
    console.print()
    console.print(Text(verdict(found), "bold"))


def verdict(found: Mapping[str, Any]) -> str:
    """Write the last line: that the recipe runs, with the figures to know before starting it."""
    b, f = found["bytes"], found["forecast"]
    figures = [f"{found['rounds']} rounds", f"{numbers.count(found['population'])} devices"]
    crossed = found["split"]["up"] if found["split"] else 0.0
    figures.append(f"{numbers.size(b['up'] + crossed)} up per device and round")
    if f["total_s"] is not None:
        figures.append(f"about {numbers.duration(f['total_s'])} here")
    return f"ok: this recipe runs: {', '.join(figures)}"


def privacy_table(p: Mapping[str, Any]) -> Any:
    """Show what each party could see, and below it the assumptions of the promise, as a rich group."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    seen = Table(box=box.SIMPLE_HEAD, title="who could see what", title_justify="left", pad_edge=False)
    for head in ("who", "single updates", "the sum", "promised"):
        seen.add_column(head)
    for w in p["seen"]:
        seen.add_row(w["who"], w["updates"], w["sum"], w["promised"])
    c = p["card"]
    if c is None:
        return Group(seen, Text(no_epsilon_sentence(p["servers"])), Text(""))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    for name, sentence in (*card_promises(c), *card_assumptions(c)):
        grid.add_row(name, sentence)
    if rows := fewer_honest_rows(c):
        caption, devices, epsilon = FEWER
        each = ", ".join(f"{eps} ({honest})" for honest, eps in rows)
        grid.add_row("", f"{caption}: {epsilon} ({devices}) {each}")
    return Group(seen, Text("privacy card", "bold"), grid, Text(""))


def _chosen_values(word: str, chosen: Mapping[str, Any]) -> Any:
    """List the values that the word of privacy chose where the recipe gives none, as a recipe would hold them."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    for key, value in chosen.items():
        grid.add_row(key, inline_toml(value), reason_of_word(word, key, value))
    return Group(Text(f'chosen by privacy = "{word}"', "bold"), grid)


def ladder_tables(found: Mapping[str, Any]) -> tuple[Any, Any]:
    """Show the rungs with their bytes, and the upload of devices on some links, as rich tables."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rungs = Table(box=box.SIMPLE_HEAD, title="the ladder", title_justify="left", pad_edge=False)
    rungs.add_column("rung", justify="right")
    rungs.add_column("codec")
    rungs.add_column("bytes", justify="right")
    for r in found["rungs"]:
        out = r["number"] is None
        number = "left out" if out else str(r["number"])
        rungs.add_row(*(Text(c, "dim" if out else "") for c in (number, r["name"], numbers.size(r["bytes"]))))
    slack = numbers.percent(100 * found["slack"], signed=False)
    share = numbers.percent(100 * found["patience"], signed=False)
    quick = f"; an upload takes {share} of the time until then" if found["patience"] else ""
    links = Table(
        box=box.SIMPLE_HEAD,
        title=f"who sends what: deadline {numbers.duration(found['deadline_s'])}, {slack} of it kept free{quick}",
        title_justify="left",
        pad_edge=False,
    )
    for head in ("Mbit/s up", "download", "training"):
        links.add_column(head, justify="right")
    links.add_column("sends")
    for head in ("bytes", "done after"):
        links.add_column(head, justify="right")
    for r in found["links"]:
        done = numbers.duration(r["total_s"]) + (", late" if r["late"] else "")
        links.add_row(
            f"{r['mbit']:g}", numbers.duration(r["down_s"]), numbers.duration(r["train_s"]), r["rung"],
            numbers.size(r["bytes"]), done,
        )  # fmt: skip
    return rungs, links


def trace_table(rows: Sequence[Mapping[str, Any]], title: str = "the update pipeline", width: int = WIDE) -> Any:
    """The Space trace as a rich table; flags are words, so that they survive without colour. On a narrow screen the
    numbers stand below the words."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    table.add_column("part, and what it does", ratio=1)
    narrow = width < WIDE
    for head in ("bytes",) if narrow else ("holds", "L2, Linf", "bytes"):
        table.add_column(head, justify="right", no_wrap=True)
    if not narrow:
        table.add_column("properties", max_width=18)
    for i, r in enumerate(rows):
        inner, opens = r["role"] == "inner", i + 1 < len(rows) and rows[i + 1]["role"] == "inner"
        name = r["name"].split("(")[0] if opens and not inner else r["name"]
        label = Text(f"{'↳ ' if inner else ''}{name}", "bold")
        cells: list[Any] = [label.append(f"\n{r['does']}", "not bold dim") if r["does"] else label]
        last = r["role"] in ("merge", "post", "strategy")
        if narrow:
            if below := _part_properties(r):
                label.append(f"\n{below}", "not bold")
            cells.append("" if last else numbers.size(r["bytes"]))
        elif last:
            cells += ["", "", "", _visibility(r)]
        else:
            holds = f"{numbers.count(r['dim'])}\n{r['kind']} {r['bits']:g} bit"
            cells += [
                holds,
                f"{_bound_in_words(r['l2'])}\n{_bound_in_words(r['linf'])}",
                numbers.size(r["bytes"]),
                _space_properties(r),
            ]
        table.add_row(*cells)
    return table


def _visibility(r: Mapping[str, Any]) -> str:
    """Tell whether the server sees single updates, in a part that says it."""
    return {True: "server sees each", False: "blind", None: ""}[r.get("visible")]


def _part_properties(r: Mapping[str, Any]) -> str:
    """Write a part's numbers and properties in one line."""
    if r["role"] in ("merge", "post", "strategy"):
        return _visibility(r)
    bounds = [
        f"{name} {_bound_in_words(r[key])}" for name, key in (("L2", "l2"), ("Linf", "linf")) if r[key] is not None
    ]
    facts = [f"{numbers.count(r['dim'])} × {r['kind']} {r['bits']:g} bit", *bounds, _space_properties(r)]
    return ", ".join(filter(None, facts))


def _bound_in_words(x: float | None) -> str:
    """Write a bound. None is "none"."""
    return "none" if x is None else numbers.figures(x)


def _space_properties(r: Mapping[str, Any]) -> str:
    """List the properties that a space has."""
    names = ("summable", "unbiased", "sparse", "memory")
    return " ".join(name for name in names if r[name])


def _buffer_in_words(b: Mapping[str, Any]) -> str:
    """Describe the rule of asynchronous rounds."""
    damped = f"one that lags s rounds weighs (1 + s)^-{b['damping']:g}" if b["damping"] else "all weigh alike"
    apart = f", and a device rests until {b['rest']} rounds after its last contribution" if b["rest"] > 1 else ""
    return f"contributions may lag {b['max_staleness']} rounds, and older ones are refused: {damped}{apart}"


def _numbers_table(found: Mapping[str, Any]) -> Any:
    """Make the table of bytes, times and cohorts."""
    from rich.table import Table

    b, f, s = found["bytes"], found["forecast"], found["sampling"]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    trained = found["trainable"]
    share = f", {100 * trained / found['parameters']:.3g} % trained" if found["parameters"] else ""
    grid.add_row("model", f"{found['model']}, {numbers.count(found['parameters'] or trained)} parameters{share}")
    fails = f"fails below {s['minimum']}" if s["minimum"] else "never fails"
    asked = f"{s['invited']} invited, closes at {s['goal']}, {fails}"
    if s["buffer"]:
        asked = f"{s['buffer']['concurrency']} devices at work, closes at {s['goal']} contributions, {fails}"
    grid.add_row("rounds", f"{found['rounds']} × ({asked}) of {numbers.count(found['population'])} devices")
    if s["buffer"]:
        grid.add_row("", _buffer_in_words(s["buffer"]))
    for note in found["notes"]:
        grid.add_row("", note)
    if found["ends"]:
        grid.add_row("", found["ends"])
    grid.add_row("local work", _local_work(found["local_steps"], found["local_epochs"]))
    for key in ("up", "down"):
        update = b["float32_update"] / b["up"] if key == "up" and b["float32_update"] and b["up"] else None
        against = numbers.against(b[f"{key}_ratio"], update)
        bound = "at most " if key == "up" and found["ladder"] else ""
        total = f"{bound}{numbers.size(b[f'{key}_total'])} in all"
        grid.add_row(key, f"{bound}{numbers.size(b[key])} per device and round, {against}; {total}")
        if key == "up" and b["up_largest"] > b["up"]:
            grid.add_row("", f"the mean of groups that take turns; the largest sends {numbers.size(b['up_largest'])}")
    if cut := found["split"]:
        grid.add_row("cut", _cut_in_words(cut))
        crosses = "activations" if cut["once"] else "activations and gradients"
        grid.add_row("", f"{crosses} are not private: the {cut['held_by']} sees them, under no epsilon")
    if b["down_missed"] is not None:
        missed = b["down_missed"]
        some = f"the deltas of up to {missed} missed round{'s' * (missed != 1)}, else " if missed else ""
        absent = f"that is in every round; one that was not: {some}the model, {numbers.size(b['snapshot'])}"
        grid.add_row("", f"down is for a device {absent}")
    grid.add_row("memory", f"{numbers.size(found['memory_bytes'])} per device for training, without Python and torch")
    grid.add_row(
        "", f"{numbers.size(found['server_bytes'])} for the server's vectors, in the same process in a simulation"
    )
    if found["kept_bytes"]:
        size = numbers.size(found["kept_bytes"])
        grid.add_row("", f"{size} that each device keeps between rounds")
    grid.add_row("verifying", _kept_totals(found["totals"]))
    if f["total_s"] is None:
        grid.add_row("time", "not measured (leave out --fast)")
    else:
        parts = f"rounds {numbers.duration(f['federated_s'])}, comparisons {numbers.duration(f['compare_s'])}"
        step = f"{numbers.duration(found['step_s'])} per step, {found['workers']} worker{'s' * (found['workers'] != 1)}"
        grid.add_row("time", f"about {numbers.duration(f['total_s'])}: {parts} ({step}; evaluation not counted)")
    if found["together"]:
        n, ratio = found["together"]["devices"], found["together"]["ratio"]
        grid.add_row(
            "", f"engine.batch_devices = {n} takes {ratio:.1f} times as many steps in that time on this machine"
        )
    return grid


def _cut_in_words(cut: Mapping[str, Any]) -> str:
    """Write the bytes that cross the cut of a split model."""
    where = f"behind block {cut['cut']} ({cut['shape']})"
    if cut["once"]:
        return f"{where}: {cut['token_up']:g} bytes of each token of a device's text go up, once"
    up, down = numbers.size(cut["up"]), numbers.size(cut["down"])
    return (
        f"{where}: {cut['token_up']:g} bytes up and {cut['token_down']:g} down per token and pass; beside the above up "
        f"to {up} up and {down} down per device and round"
    )


def _local_work(steps: Mapping[str, Any], epochs: float | None) -> str:
    """Write the optimizer steps of a device and round."""
    if epochs is None:
        return f"{numbers.local_work(steps['most'], 0.0)} per device and round"
    fewest, most = (numbers.count(steps[k]) for k in ("fewest", "most"))
    span = f"{fewest} to {most} steps, {numbers.figures(steps['mean'])} on average"
    if steps["fewest"] == steps["most"]:
        span = numbers.local_work(steps["most"], 0.0).replace("local ", "")
    some = f"{span}, of {numbers.count(steps['devices'])} devices counted"
    if steps["cut"]:
        some += f"; {numbers.count(steps['cut'])} reach training.max_local_steps"
    return f"{numbers.local_work(0, epochs)} per device and round: {some}"


def _kept_totals(window: Mapping[str, int]) -> str:
    """Write how much of the run `edgewise run verify` can replay, and the disk space of the totals."""
    rounds, most = window["rounds"], numbers.size(window["most_bytes"])
    if rounds == 0:
        return "no round can be replayed: store.totals_mb has no room for one released total"
    which = (
        "all rounds"
        if rounds is None
        else f"the last {numbers.count((rounds + 1) // 2)} to {numbers.count(rounds)} rounds"
    )
    return f"the folder keeps the released totals of {which}, {most} at most, for `edgewise run verify`"
