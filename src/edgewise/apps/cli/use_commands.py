"""The commands that use a trained model: generate, chat and export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgewise.apps.terminal.options import Debug, Json

if TYPE_CHECKING:
    from edgewise.apps.models.conversation import Conversation
    from edgewise.apps.models.in_use import UsedModel
    from edgewise.learn.models.streaming import GeneratedText

Place = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="Folder of a run, of a server (promoted model), or of an exported or fetched model.",
        show_default=False,
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="global, personal or base. Repeat it to compare (default: global, with a device also personal).",
    ),
]
Device = Annotated[str, typer.Option("--device", help="Device of the run whose personal model is used too.")]
DeviceHome = Annotated[
    Path | None, typer.Option("--home", help="Folder of the device with a personal model, for a fetched model.")
]
Played = Annotated[
    int | None,
    typer.Option("--round", min=0, help="Number of rounds after which to take the model (default: all rounds)."),
]
Base = Annotated[str, typer.Option("--base", help="Folder of the base model, if it has moved.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Largest number of new tokens.")]
Temperature = Annotated[
    float, typer.Option("--temperature", min=0, max=100, help="0 takes the likeliest token each time.")
]
TopP = Annotated[
    float, typer.Option("--top-p", min=0.01, max=1, help="Draw from the likeliest tokens with this probability.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Decides the draws.")]


def generate(
    place: Place,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Text to continue (default: standard input).", show_default=False)
    ] = None,
    models: Models = None,
    device: Device = "",
    home: DeviceHome = None,
    played: Played = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.8,
    top_p: TopP = 0.95,
    seed: Seed = 0,
    base: Base = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Continue a text with a trained model.

    The text appears as it is generated. With several models each continues the same prompt, one after the other.
    """
    from edgewise.apps.terminal.sessions import CommandSession

    def body() -> dict[str, Any]:
        from edgewise.learn.models.streaming import BY_HAND, Decoding, prompt_token_ids, stream

        text = sys.stdin.read() if prompt is None else prompt
        used, load_s = opened(place, played, base, device, home, debug)
        settings = Decoding(max_tokens, temperature, top_p, seed)
        answers = {}
        names = names_of(models, used)
        for name in names:
            used.turn_to(name)
            if not as_json and len(names) > 1:
                print(f"\n[{name}]")
            show = (lambda piece: None) if as_json else _print_piece
            answer = stream(used.model, used.tokens, prompt_token_ids(used.tokens, text), settings, show)
            if not as_json:
                print()
            answers[name] = _answer_figures(answer)
            if answer.ended == BY_HAND:
                raise KeyboardInterrupt
        return {"from": used.title, "load_s": load_s, "answers": answers}

    raise typer.Exit(CommandSession("generate", as_json=as_json, debug=debug).run(body))


def chat(
    place: Place,
    models: Models = None,
    device: Device = "",
    home: DeviceHome = None,
    system: Annotated[str, typer.Option("--system", help="Text of a system message.")] = "",
    template: Annotated[
        Path | None, typer.Option("--template", help="Jinja file of a chat template, for a model without one.")
    ] = None,
    played: Played = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.8,
    top_p: TopP = 0.95,
    seed: Seed = 0,
    base: Base = "",
    debug: Debug = False,
) -> None:
    """Chat with a trained model.

    Each line of standard input is a message. With several models each answers it. Ctrl-C ends an answer, and the end of
    the input ends the chat.
    """
    from edgewise.apps.terminal.sessions import CommandSession

    def body() -> None:
        from edgewise.apps.models.conversation import Conversation
        from edgewise.learn.models.streaming import Decoding

        used, _ = opened(place, played, base, device, home, debug)
        names = names_of(models, used)
        _chat_until_end(
            Conversation(used, names, Decoding(max_tokens, temperature, top_p, seed), system, template), names
        )

    raise typer.Exit(CommandSession("chat", debug=debug).run(body))


def names_of(models: list[str] | None, used: UsedModel) -> list[str]:
    """Return the models to use: those that were asked for, or the global one and a personal one beside it."""
    return models or [name for name in used.names if name != "base"]


def _chat_until_end(chat: Conversation, names: list[str]) -> None:
    """Read messages and print answers until the input ends."""
    from edgewise.apps.terminal.sessions import error_for_terminal
    from edgewise.core.errors import EdgewiseError
    from edgewise.learn.models.streaming import BY_HAND

    while (text := _next_message()) is not None:
        for name in names if text else ():
            if len(names) > 1:
                print(f"[{name}]")
            try:
                answer = chat.ask(text, name, _print_piece)
            except EdgewiseError as e:
                print(error_for_terminal(e), file=sys.stderr)
                continue
            print(" [stopped]" if answer.ended == BY_HAND else "")
            if chat.dropped:
                print(f"({chat.dropped} old messages no longer fit into the model's context.)", file=sys.stderr)


def _next_message() -> str | None:
    """Read a line. None at the end of the input. Ctrl-C clears the line."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        print()
        return ""


def opened(
    place: Path, played: int | None, base: str, device: str, home: Path | None, debug: bool
) -> tuple[UsedModel, float]:
    """Open a model behind a quiet screen. Returns it and the seconds that it took."""
    import time

    from edgewise.apps.terminal import sessions

    with sessions.quiet_screen(None, debug):
        begun = time.perf_counter()
        from edgewise.apps.models.in_use import open_model

        used = open_model(place, played=played, base=base, device=device, home=home)
        return used, time.perf_counter() - begun


def _print_piece(piece: str) -> None:
    """Print a piece of an answer at once."""
    print(piece, end="", flush=True)


def _answer_figures(answer: GeneratedText) -> dict[str, Any]:
    """List the figures of an answer."""
    return {
        "text": answer.text,
        "prompt_tokens": answer.prompt,
        "tokens": answer.tokens,
        "ended": answer.ended,
        "first_token_s": answer.first_s,
        "tokens_per_s": answer.tokens_per_s,
    }


def export(
    run_dir: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_DIR", help="A run directory, or a server's folder (promoted model).", show_default=False
        ),
    ],
    dest: Annotated[Path, typer.Option("--dest", help="A new or empty folder for the model.", show_default=False)],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="merged (whole model), peft (LoRA adapter), gguf or gguf-adapter (for llama.cpp), tensors (by name).",
        ),
    ] = "merged",
    played: Played = None,
    base: Base = "",
    dtype: Annotated[
        str,
        typer.Option("--dtype", help="Type of the weights: base, float32, bfloat16, float16, or q8_0 (gguf)."),
    ] = "base",
    device: Annotated[
        str, typer.Option("--device", help="Write the personal model of this device in place of the run's.")
    ] = "",
    with_base: Annotated[
        bool, typer.Option("--with-base", help="Write the base next to an adapter. The bundled one always is.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Export a run's model for transformers, peft or llama.cpp.

    Reads the written model back and compares its logits with those of the trained model. Fails if they differ.
    """
    from edgewise.apps.terminal.sessions import CommandSession

    def body() -> dict[str, Any]:
        from edgewise.apps.terminal import sessions

        with sessions.interrupts(), sessions.quiet_screen(run_dir / "log.txt", debug):
            from edgewise.apps.models import export as exporter

            wanted = exporter.ExportRequest(to, played, base or None, dtype, with_base, device or None)
            written = exporter.write_export(run_dir, dest, wanted)
        if not as_json:
            print(f"{to} model after {written['rounds']} rounds: {dest}")
        return written

    raise typer.Exit(CommandSession("export", as_json=as_json, debug=debug).run(body))
