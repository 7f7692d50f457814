"""Live progress of a run: an event sink that draws with rich on a terminal and prints plain lines elsewhere.

with ProgressScreen(recipe, sys.stderr) as progress:
    simulation.run(recipe, out=out, recipe_dir=folder, sinks=(progress,))
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from edgewise.apps.report import numbers
from edgewise.core import events
from edgewise.core.errors import REGISTRY

if TYPE_CHECKING:
    from rich.console import Console, Group

    from edgewise.plan.recipe.recipe import Recipe

PHASES = {
    "load": "loading model and text",
    "federated": "federated rounds",
    "longer": "comparison: alone for longer",
    "personal": "personal models",
    "evaluate": "measuring",
    "samples": "samples of text",
    "report": "writing the report",
    "stopping": "stopping; Ctrl-C again quits at once",
}


def _phase_title(phase: str, recipe: Recipe) -> str:
    """Name a phase of a run in words."""
    if phase != "compare":
        return PHASES.get(phase, phase)
    wanted = recipe.compare
    parts = ["each device alone"] * wanted.local_only + ["all text in one place"] * wanted.centralised
    return f"comparison{'s' * (len(parts) > 1)}: {', and '.join(parts)}"


def _beside_the_bar(phase: str, recipe: Recipe) -> str:
    """Name a phase in few words, which leave room for the bar and the times in 80 columns."""
    kind, _, what = _phase_title(phase, recipe).partition(": ")
    return kind if len(what) > 24 else what or kind


@dataclass
class Board:
    """State of a run as its events tell it. ``now_s`` is an argument, so that a test can hold the clock.

    ``phase`` is None before the first phase and after the last one.
    """

    recipe: Recipe
    now_s: Callable[[], float] = time.monotonic
    population: int = 0
    dim: int = 0
    rounds: int = 0
    resumed: int | None = None
    phase: str | None = None
    phase_at: float = 0.0
    done: int = 0
    total: int = 0
    invited: int = 0
    expected: int = 0
    answered: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    contributions: int = 0
    invitations: int = 0
    train_s: float = 0.0
    played_here: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    losses: list[float] = field(default_factory=list)
    perplexities: list[float] = field(default_factory=list)
    phases: list[tuple[str, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    forecast: events.Forecast | None = None

    def take(self, e: events.AnyEvent) -> None:
        """Update the state with one event."""
        match e:
            case events.RunStarted():
                self.population, self.dim = e.population, e.dim
                self.rounds, self.resumed = e.rounds, e.resumed_round
            case events.PhaseStarted():
                self._close_phase()
                self.phase, self.phase_at = e.phase, self.now_s()
                self.done, self.total = 0, e.steps
                if e.phase == "federated":
                    self.done = self.resumed or 0
            case events.Forecast():
                self.forecast = e
            case events.RoundStarted():
                self.invited, self.answered = e.invited, 0
                self.expected = max(e.invited, e.goal)  # Asynchronous rounds take answers to earlier invitations too.
            case events.Accepted():
                self.answered += 1
                self.contributions += 1
                self.bytes_up += e.bytes_up
                self.train_s += e.train_s
            case events.Lost():
                self.answered += 1
                self.lost[e.code] += 1
            case events.RoundFinished():
                self.done, self.played_here = e.round + 1, self.played_here + 1
                self.bytes_down += e.bytes_down
                self.invitations += self.invited
                if e.late:
                    self.lost["late"] += e.late
                if (loss := e.head.get("loss_last")) is not None:
                    self.losses.append(loss)
            case events.Evaluated():
                if e.model in ("base", "federated"):
                    from edgewise.apps.report.quality import perplexity

                    self.perplexities.append(perplexity(sum(e.nll.values()), sum(e.tokens.values())))
            case events.Progress():
                self.done, self.total = e.done, e.total
                if failure(e.note):
                    self.failures.append(e.note)
            case events.RunFinished() | events.RunFailed():
                self._close_phase()
                self.phase = None

    def _close_phase(self) -> None:
        if self.phase is not None:
            self.phases.append((self.phase, self.now_s() - self.phase_at))

    @property
    def elapsed_s(self) -> float:
        """Seconds since this phase began."""
        return self.now_s() - self.phase_at

    def left_s(self) -> float | None:
        """Estimate the seconds to the end of the run, comparisons included. None while nothing is known.

        During the rounds the estimate is their rate here, plus comparisons that repeat the same training (see
        ``plan.explain.forecast``). Before the first round has ended it is the forecast, if there is one.
        """
        began = self.resumed or 0 if self.phase == "federated" else 0
        if self.phase in ("report", "stopping") or self.total <= self.done:
            return None
        if self.done <= began:
            if self.phase == "federated" and self.forecast is not None and not self.played_here:
                return max(0.0, self.forecast.rounds_s + self.forecast.compare_s - self.elapsed_s)
            known = self.phase in ("compare", "longer", "personal") and self.played_here
            return max(0.0, self._compare_s() - self.elapsed_s) if known else None
        left = self.elapsed_s / (self.done - began) * (self.total - self.done)
        if self.phase == "federated" and self.played_here:
            left += self._compare_s()
        if self.phase in ("federated", "compare") and self.played_here:
            left += self._longer_s()
        if self.phase in ("federated", "compare", "longer") and self.played_here:
            left += self._personal_s()
        return left

    def _compare_s(self) -> float:
        """Estimate the seconds of the current comparison, or of the one after the rounds."""
        if self.phase == "longer":
            return self._longer_s()
        if self.phase == "personal":
            return self._personal_s()
        wanted, work = self.recipe.compare, self._work_s()
        if wanted.local_only and wanted.centralised:
            return work if self._worker_count > 1 else 2 * work
        if wanted.local_only:
            return work / self._worker_count + self._personal_s()
        return work if wanted.centralised else 0.0

    def _personal_s(self) -> float:
        """Estimate the seconds of making the personal models, by the steps of a device in all rounds.

        Those of ditto train beside the rounds, in their time.
        """
        further, training = self.recipe.personal.further_steps(), self.recipe.training
        if not (further and self.played_here and training.local_steps):
            return 0.0
        return self._work_s() * further / (training.local_steps * self.rounds) / self._worker_count

    def _longer_s(self) -> float:
        wanted = self.recipe.compare
        if not (wanted.longer and self.played_here and self.population):
            return 0.0
        devices = min(wanted.longer_devices, self.population)
        return self._work_s() / self.population * wanted.longer * devices / min(self._worker_count, devices)

    @property
    def _worker_count(self) -> int:
        """Count the processes that train."""
        s = self.recipe.simulation
        return s.processes

    def _work_s(self) -> float:
        """Estimate the device seconds of all rounds."""
        return self.train_s / self.played_here * self.rounds


class ProgressScreen:
    """Event sink that shows a run's progress. Use it as a context manager around the run.

    Args:
        recipe: source of titles and estimates.
        stream: usually standard error.
        quiet: show nothing.
        live: draw (True) or print lines (False). By default it draws on a terminal outside of CI.
    """

    def __init__(self, recipe: Recipe, stream: TextIO, *, quiet: bool = False, live: bool | None = None) -> None:
        self.board = Board(recipe)
        self.began = self.board.now_s()
        self._stream, self._quiet = stream, quiet
        self._draw = stream.isatty() and not os.environ.get("CI") if live is None else live
        self._live: Any = None
        self._console: Console | None = None

    def __enter__(self) -> ProgressScreen:
        if self._draw and not self._quiet:
            from rich.console import Console
            from rich.live import Live

            self._console = Console(file=self._stream)
            self._live = Live(
                get_renderable=self.render,
                console=self._console,
                refresh_per_second=8,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def stopping(self) -> None:
        """Show that Ctrl-C was received. A signal handler may call it."""
        self.board.phase = "stopping"

    def __call__(self, event: events.AnyEvent) -> None:
        """Take one event and show its news."""
        self.board.take(event)
        if self._quiet:
            return
        if self._console is not None:
            self._finished_phase(event)
            for note in event.notes if isinstance(event, events.Noted) else ():
                self._console.print(f"note: {note}", style="yellow", markup=False, highlight=False)
        elif line := self.line(event):
            print(line, file=self._stream, flush=True)

    def _finished_phase(self, event: events.AnyEvent) -> None:
        """Print one line above the live part for a finished phase."""
        if isinstance(event, events.Forecast) and self._console is not None:
            self._console.print(_forecast_in_words(event), style="dim", highlight=False)
        ended = isinstance(event, events.PhaseStarted | events.RunFinished)
        if ended and self.board.phases and self._console is not None:
            phase, seconds = self.board.phases[-1]
            title = _phase_title(phase, self.board.recipe)
            self._console.print(f"[green]✓[/] {title}  [dim]{numbers.duration(seconds)}[/]", highlight=False)

    def line(self, e: events.AnyEvent) -> str:
        """Format an event as a plain line. Empty for an event without news."""
        b = self.board
        match e:
            case events.RunStarted():
                again = f", resumed after round {e.resumed_round}" if e.resumed_round else ""
                return f"{e.name}: {e.population} devices, {numbers.count(e.dim)} trained coordinates{again}"
            case events.PhaseStarted():
                return _phase_title(e.phase, b.recipe)
            case events.Noted():
                return "\n".join(f"note: {note}" for note in e.notes)
            case events.Forecast():
                return _forecast_in_words(e)
            case events.Redistilled():
                from edgewise.apps.report import redistillation

                return redistillation.redistillation_line(e)
            case events.RoundFinished():
                loss = f"  loss {b.losses[-1]:.4f}" if e.head.get("loss_last") is not None else ""
                lost = f"  lost {e.lost}, late {e.late}" if e.lost or e.late else ""
                gone = "" if e.met else "  abandoned: too few contributions"
                up = numbers.size(e.bytes_up / e.accepted) if e.accepted else numbers.NOTHING
                return (
                    f"round {e.round + 1:>{len(str(b.rounds))}}/{b.rounds}"
                    f"  {e.accepted}/{b.expected} answered{lost}{loss}  up {up} each"
                    f"  {numbers.duration(e.seconds)}{gone}"
                )
            case events.Evaluated():
                from edgewise.apps.report.quality import perplexity

                value = perplexity(sum(e.nll.values()), sum(e.tokens.values()))
                without = f"  without {len(e.missing)} devices that did not measure it" if e.missing else ""
                model = numbers.MODELS.get(e.model, e.model)
                if e.model == "longer":
                    model = f"of {numbers.devices(len(e.nll))} alone, {b.recipe.compare.longer} times the steps"
                if not e.nll:
                    return f"perplexity {model}: not measured"
                return f"perplexity {model}: {numbers.perplexity(value)}{without}"
            case events.StoppedEarly():
                return numbers.early_end_reason(e.played, b.rounds, e.evaluations, e.kept)
            case events.Progress():
                if failure(e.note):
                    return f"{e.phase} {e.done}/{e.total}  no figure for {e.note}"
                step = max(1, e.total // 8)
                return f"{e.phase} {e.done}/{e.total}" if e.done % step == 0 or e.done == e.total else ""
        return ""

    def render(self) -> Group:
        """Draw the live part of the screen."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        b = self.board
        if b.phase is None:
            return Group()
        left = b.left_s()
        head = Table.grid(padding=(0, 2))
        title = _beside_the_bar(b.phase, b.recipe)
        if b.phase == "federated":
            title = f"round {min(b.done + 1, b.total)}/{b.total}"
        bar = ProgressBar(total=b.total or None, completed=b.done, width=28, pulse=not b.total)
        times = f"{numbers.as_on_a_clock(self.board.now_s() - self.began)} elapsed"
        head.add_row(Text(title, style="bold"), bar, times + (f"  {numbers.as_on_a_clock(left)} left" if left else ""))
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="dim", min_width=11)
        rows.add_column()
        if b.phase == "federated":
            answered = min(b.answered, b.expected)
            rows.add_row(
                "answered", Text(_progress_dots(answered, b.expected)).append(f"  {answered}/{b.expected}", "dim")
            )
        if b.losses:
            rows.add_row("train loss", _trend_line(b.losses, lambda v: f"{v:.3f}"))
        if b.perplexities:
            rows.add_row("perplexity", _trend_line(b.perplexities, numbers.perplexity))
        if b.contributions:
            rows.add_row("upload", _bytes_in_words(b.bytes_up, b.contributions))
        if b.invitations:
            rows.add_row("download", _bytes_in_words(b.bytes_down, b.invitations))
        if b.lost:
            losses = ", ".join(f"{n} {code}" for code, n in b.lost.most_common())
            rows.add_row("lost", Text(losses, style="yellow"))
        if b.failures:
            more = f" (and {len(b.failures) - 1} more)" if len(b.failures) > 1 else ""
            rows.add_row("no figure", Text(f"{b.failures[-1]}{more}", style="yellow"))
        return Group(head, rows)


def _forecast_in_words(e: events.Forecast) -> str:
    """Write how long the run will take."""
    parts = f"rounds {numbers.about_seconds(e.rounds_s)}"
    if e.compare_s:
        parts += f", comparisons {numbers.about_seconds(e.compare_s)}"
    return f"about {numbers.about_seconds(e.rounds_s + e.compare_s)} from here: {parts}"


def failure(note: str) -> bool:
    """Tell whether a note reports a failure by an error code: ``device: E-NAN: ...``."""
    return any(part.strip() in REGISTRY for part in note.split(":"))


def _progress_dots(done: int, total: int, most: int = 40) -> str:
    """Draw progress as dots."""
    if total > most:
        done, total = round(done / total * most), most
    return "●" * done + "○" * (total - done)


def _trend_line(values: list[float], shown: Callable[[float], str]) -> Any:
    """Draw values as a line of blocks, and the first and last one."""
    from rich.text import Text

    text = Text(numbers.sparkline(values), style="cyan")
    if len(values) > 1:
        text.append(f"  {shown(values[0])} → ", "dim")
    return text.append(f"{'' if len(values) > 1 else '  '}{shown(values[-1])}", "bold")


def _bytes_in_words(total: int, n: int) -> str:
    """Write the bytes of a device and of the run so far."""
    return f"{numbers.size(total / n)} per device and round, {numbers.size(total)} so far"
