"""What may be chosen for a single question, and what holds where nothing is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from ..errors import InvalidArgument
from ..sampling import Sampling
from .turn import TurnOptions

if TYPE_CHECKING:
    from .opening import Opening


class AskOptions(TypedDict, total=False):
    """The keywords of `Chat.stream`, which `ask`, `astream` and `aask` take too."""

    sampling: Sampling | None
    max_new_tokens: int | None
    max_reasoning_tokens: int | None
    max_tool_calls: int | None
    tool_choice: str | None
    response_format: Any
    logprobs: int | None


class TurnDefaults:
    """The options of a chat's turns, where a question brings none of its own."""

    def __init__(
        self,
        opening: Opening,
        *,
        tool_timeout: float | None,
        loop_guard: int | None,
        stop: tuple[str, ...],
        **defaults: Any,
    ) -> None:
        """``defaults`` are those of `AskOptions` that a question may change.

        Raises InvalidArgument for values out of range, here and in `turn`.
        """
        _check_number("loop_guard", loop_guard, 2)
        _check_number("tool_timeout", tool_timeout, 0)
        self._opening = opening
        self._defaults = defaults
        self._fixed = {"tool_timeout": tool_timeout, "loop_guard": loop_guard, "stop": stop}
        self.turn({})

    def turn(self, given: AskOptions) -> TurnOptions:
        """The options of a turn: ``given``, and the chat's own where that says None or nothing."""
        unknown = given.keys() - AskOptions.__annotations__.keys()
        if unknown:
            raise TypeError(f"unexpected keyword arguments: {', '.join(sorted(unknown))}")
        chosen = {key: value for key, value in given.items() if value is not None}
        options: dict[str, Any] = {**self._defaults, **chosen}
        own_format = options.pop("response_format", None)
        choice = options.pop("tool_choice")
        options.setdefault("logprobs", None)
        for key in ("max_new_tokens", "max_reasoning_tokens", "max_tool_calls", "logprobs"):
            _check_number(key, options[key], 0)
        if not isinstance(options["sampling"], Sampling | None):
            raise InvalidArgument(
                f"[chat] sampling: expected a Sampling, got {options['sampling']!r}"
            )
        if choice == "none":
            options["max_tool_calls"] = 0
        opening = self._opening
        answer_format = opening.format if own_format is None else opening.format_of(own_format)
        return TurnOptions(
            **options,
            **self._fixed,  # type: ignore[arg-type]
            allowed=opening.toolbox.allowed(choice),
            required=choice not in ("auto", "none"),
            format=answer_format,
        )


def _check_number(name: str, value: object, least: int) -> None:
    """Raises InvalidArgument unless `value` is None or a number from `least` on; a count is whole,
    a time need not be."""
    kinds = (int, float) if name == "tool_timeout" else (int,)
    whole = isinstance(value, kinds) and not isinstance(value, bool)
    if value is not None and not (whole and value >= least):  # type: ignore[operator]
        raise InvalidArgument(f"[chat] {name}: expected {least} or more, or None, got {value!r}")
