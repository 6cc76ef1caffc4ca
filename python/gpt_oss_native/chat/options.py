"""What may be chosen for a single question, and what holds where nothing is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from ..errors import InvalidArgument
from .turn import TurnOptions

if TYPE_CHECKING:
    from ..sampling import Sampling
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
        if loop_guard is not None and loop_guard < 2:
            raise InvalidArgument(
                f"[chat] loop_guard: expected 2 tokens or more, or None, got {loop_guard!r}"
            )
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
        for key in ("max_reasoning_tokens", "max_tool_calls"):
            value = options[key]
            if value is not None and (not isinstance(value, int) or value < 0):
                raise InvalidArgument(f"[chat] {key}: expected 0 or more, got {value!r}")
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
